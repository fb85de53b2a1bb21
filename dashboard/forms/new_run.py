"""The form that starts a run from a preset, or from the settings of an earlier run: the one in the `from` parameter of the address, with
the change that `next` names.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.config import PRESETS, GenerationConfig, RunConfig, live_knobs
from core.runs.run import Run
from dashboard import session
from dashboard.components import problems
from dashboard.forms import next_runs, sources
from dashboard.forms import run as forms
from dashboard.forms.knobs import live_sliders
from dashboard.names import knob_title
from dashboard.text import plain

FROM_PARAMETER, NEXT_PARAMETER = "from", "next"


def start_again(run: Run, change: str = "") -> None:
    """Opens the Studio with a form that has the settings of the run. change: a name of `next_runs.NEXT_RUNS`, which is applied to them."""
    st.switch_page("dashboard/pages/studio.py", query_params={FROM_PARAMETER: run.id, **({NEXT_PARAMETER: change} if change else {})})


def just_asked_for() -> bool:
    """Whether the address names an earlier run for the first time, so that the form must be opened."""
    wanted = (st.query_params.get(FROM_PARAMETER), st.query_params.get(NEXT_PARAMETER))
    known, st.session_state["last from"] = st.session_state.get("last from"), wanted
    return wanted[0] is not None and wanted != known


def _forget() -> None:
    for name in (FROM_PARAMETER, NEXT_PARAMETER):
        st.query_params.pop(name, None)


def open_key(run_id: str) -> str:
    """Where the session keeps whether the forms above a run are open. It contains the run, so that they close when another one starts."""
    return f"new run/{run_id}"


def toggle(run_id: str) -> None:
    """The button that opens and closes the forms above a run; may be drawn in a fragment."""
    opened = st.session_state.get(open_key(run_id), False)
    if st.button("New run", icon=":material/close:" if opened else ":material/add:", key="new run"):
        st.session_state[open_key(run_id)] = not opened
        st.rerun()


def form() -> None:
    """Preset, sliders and all settings. Starts the run and shows it after Start was pressed."""
    earlier, changes = None, []
    with problems.shown():
        earlier = _earlier_run()
    if earlier is None:
        preset = forms.preset_choice("preset")
        start, key = PRESETS[preset], preset
    else:
        run, start = earlier
        instead = forms.preset_instead(run.name, f"preset/{run.id}")
        if instead is not None:
            _forget()
            st.session_state["preset"] = instead
            st.rerun()
        key = "/".join(["from", run.id, *filter(None, [st.query_params.get(NEXT_PARAMETER)])])
        changes = _changes_to_repeat(run, key)
    values = {}
    if not start.images_from:
        values = live_sliders(
            {name: getattr(start.generation, name) for name in live_knobs(GenerationConfig)},
            f"new/{key}",
            methods=forms.chosen_methods(start, key),
        )
    with problems.shown():
        config = forms.run_form(start, key, values)
        if config is not None:
            repeated = [change for change in changes if change["method"] in config.methods]
            session.start(config, changes=repeated, executor=forms.chosen_executor(key))
            _forget()  # only now, so that the form stays as it is when the run cannot start
            sources.forget_uploads()
            if config.images_from:  # the Studio shows generated images only
                st.switch_page("dashboard/pages/quantize.py", query_params={session.RUN_PARAMETER: st.query_params[session.RUN_PARAMETER]})
            st.rerun()


def _earlier_run() -> tuple[Run, RunConfig] | None:
    """The run in the address and its settings. Raises RunError if it does not exist or was deleted, ConfigError if it cannot be read."""
    run_id = st.query_params.get(FROM_PARAMETER)
    if not run_id:
        return None
    session.store().config(run_id)  # raises where it cannot be read
    run = session.store().run(run_id)
    return run, next_runs.settings_of(run, st.query_params.get(NEXT_PARAMETER, ""))


def _changes_to_repeat(run: Run, key: str) -> list[dict[str, Any]]:
    """The live changes of the run, which are not part of its settings, if they are to be made again."""
    changes = session.store().changes(run.id)
    names = ", ".join(dict.fromkeys(knob_title(change["name"]) for change in changes))
    wanted = changes and st.checkbox(
        plain(f"Repeat the live changes of that run: {names}"),
        key=f"{key}/repeat",
        help="Sets the same values at the same iterations. A slider that you move during the run ends the changes of its knob.",
    )
    return changes if wanted else []
