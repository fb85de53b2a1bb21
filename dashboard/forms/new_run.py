"""The form that starts a run: from a preset, or with the settings of an earlier run, which the address names as `from`."""

from __future__ import annotations

import streamlit as st

from core.config import PRESETS, GenerationConfig, RunConfig, live_knobs
from core.errors import CoreError
from core.runs.run import Run
from dashboard import session, text
from dashboard.forms import run as forms
from dashboard.forms import sources
from dashboard.forms.knobs import live_sliders
from dashboard.names import knob_title

FROM_PARAMETER = "from"


def start_again(run: Run) -> None:
    """Goes to the Studio, whose form then begins with the settings of the run."""
    st.switch_page("dashboard/pages/studio.py", query_params={FROM_PARAMETER: run.id})


def just_asked_for() -> bool:
    """Whether somebody came to start again, and the form has not been shown for it yet."""
    wanted = st.query_params.get(FROM_PARAMETER)
    known, st.session_state["asked to start again"] = st.session_state.get("asked to start again"), wanted
    return wanted not in (None, known)


def form() -> None:
    """Preset, sliders and all settings; shows the run that it starts."""
    try:
        like = _like()
    except CoreError as error:
        st.error(text.error(error), icon=":material/error:")
        like = None
    if like is None:
        preset = forms.preset_choice("preset")
        start, key = PRESETS[preset], preset
    else:
        run, start = like
        instead = forms.preset_instead(run.name, f"preset/{run.id}")
        if instead is not None:
            st.query_params.pop(FROM_PARAMETER, None)
            st.session_state["preset"] = instead
            st.rerun()
        key = f"from/{run.id}"
        _say_what_was_turned(run)
    values = {}
    if not start.images_from:
        values = live_sliders({name: getattr(start.generation, name) for name in live_knobs(GenerationConfig)}, f"new/{key}")
    try:
        config = forms.run_form(start, key, values)
        if config is not None:
            st.query_params.pop(FROM_PARAMETER, None)
            session.start(config, session.uploads().run_name(config))
            sources.forget_uploads()
            if config.images_from:  # which the Studio does not show
                st.switch_page("dashboard/pages/quantize.py", query_params={session.RUN_PARAMETER: st.query_params[session.RUN_PARAMETER]})
            st.rerun()
    except CoreError as error:
        st.error(text.error(error), icon=":material/error:")


def _like() -> tuple[Run, RunConfig] | None:
    """The run that the address names, and its settings. Raises RunError or ConfigError where they are not to be had."""
    run_id = st.query_params.get(FROM_PARAMETER)
    return (session.store().run(run_id), session.store().config(run_id)) if run_id else None


def _say_what_was_turned(run: Run) -> None:
    """Knobs that were turned while it ran are no settings: whoever starts again should know that there were some."""
    turned = list(dict.fromkeys(knob_title(change["name"]) for change in session.store().changes(run.id)))
    if turned:
        st.caption(f"While that run was going on, these were turned, which does not happen again by itself: {', '.join(turned)}.")
