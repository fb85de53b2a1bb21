"""State shared by the pages: the server's RunManager, the shown run and other address parameters, and caches of what the store holds.

Pages read the runs that they show, never all of them (core/runs/lists.py).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from core import layout
from core.comparison.sweeping import Sweeper
from core.config import RunConfig
from core.data.some_images import SomeImages
from core.errors import RunError
from core.models.network_names import names_of
from core.models.registry import MODELS
from core.runs.lists import ALL, RunFilter
from core.runs.manager import RunManager, default_name
from core.runs.records import Record
from core.runs.run import Run
from core.runs.state import RunState
from core.runs.store import RunStore
from dashboard import text
from dashboard.pages import PAGES
from dashboard.server import resources, rights
from dashboard.server.uploads import Uploads

RUN_PARAMETER = "run"
AT_PARAMETER = "at"  # the iteration that the Studio shows; absent for the newest
VIEW_PARAMETER = "view"  # the chart that the Studio shows
_METHOD_PARAMETER, _IMAGE_PARAMETER = "method", "image"  # the enlarged image
_BESIDE_PARAMETER = "beside"  # of which column of the branches it is; absent for the run's own images above
_OLD_METHOD_PARAMETER = "lane"  # in links of version 1
_LAYER_PARAMETER = "layer"  # counted from 1
MOST_LISTED = 200  # runs in a selection box, and in the table of runs; with thousands of them, a browser takes seconds
WITH_IMAGES = RunFilter(has_images=True)
GENERATING = RunFilter(generates=True)
_NOT_FAILED = tuple(state for state in RunState if state is not RunState.FAILED)
# for the sentence about a run that does not fit
_LACKS = {WITH_IMAGES: "has no images", GENERATING: "was given its images and did not generate any"}


@st.cache_resource(show_spinner=False)
def manager() -> RunManager:
    """One for the whole server, so that runs continue when a page is closed."""
    resources.collect_garbage_often()
    return RunManager(RunStore(), executor="processes")


def store() -> RunStore:
    """The store of the manager."""
    return manager().store


@st.cache_resource(show_spinner=False)
def sweeper() -> Sweeper:
    """One for the whole server, as its manager."""
    return Sweeper(manager())


def uploads() -> Uploads:
    """Uploaded networks and images, stored beside the runs."""
    return Uploads(store().folder)


def show_run(run_id: str | None) -> None:
    """Makes this the run that all pages show, and puts it into the address; None: no run."""
    st.session_state["shown run"] = run_id
    if run_id != st.query_params.get(RUN_PARAMETER):
        for name in (name for page in PAGES for name in page.run_parameters):
            st.query_params.pop(name, None)
    if run_id is None:
        st.query_params.pop(RUN_PARAMETER, None)
    else:
        st.query_params[RUN_PARAMETER] = run_id


def page_of(run: Run) -> str:
    """The page that a run's name opens: the Studio, unless the run did not generate its images."""
    return "quantize" if run.config.images_from else "studio"


def page_address(page: str, run_id: str) -> str:
    """Address of a page that shows a run, relative to the pages."""
    first = page == PAGES[0].name
    return f"{'.' if first else page}?{RUN_PARAMETER}={run_id}"


def open_run(page: str, run_id: str) -> None:
    """Goes to a page of PAGES that shows this run."""
    show_run(run_id)
    st.switch_page(next(one.path for one in PAGES if one.name == page), query_params={RUN_PARAMETER: run_id})


def remember_run() -> None:
    """Stores which run the address names, because links to other pages drop the address parameters.

    Call it before any links are drawn: clicking one stops the script of the current page at any point.
    """
    wanted = st.query_params.get(RUN_PARAMETER)
    if wanted and store().lists.count(RunFilter(ids=[wanted])):
        st.session_state["shown run"] = wanted


def shown_run(which: RunFilter = ALL) -> Run | None:
    """The run in the address or chosen earlier, if the filter has it; otherwise an active run; otherwise the newest one that
    did not fail; otherwise the newest one.
    """
    wanted = st.query_params.get(RUN_PARAMETER) or st.session_state.get("shown run")
    runs = store().runs(replace(which, ids=[wanted]), most=1) if wanted else []
    if runs and RUN_PARAMETER not in st.query_params:  # chosen on another page
        put_into_address(RUN_PARAMETER, wanted)
    for other in (replace(which, active=True), replace(which, states=_NOT_FAILED), which):
        runs = runs or store().runs(other, most=1)
    return runs[0] if runs else None


def say_if_another(shown: Run | None, which: RunFilter) -> None:
    """A sentence if the address names a run that the page does not show, because it does not exist or the page's filter leaves it out."""
    wanted = st.query_params.get(RUN_PARAMETER)
    if not wanted or (shown is not None and shown.id == wanted):
        return
    try:
        reason = f"Run {text.plain(store().run(wanted).name)} {_LACKS.get(which, 'is not one that this page shows')}"
    except RunError as error:
        reason = text.error(error)
    st.warning(reason + ("" if shown is None else "; this page shows another run") + ".", icon=":material/info:")


def put_into_address(name: str, value: object) -> None:
    """Sets a parameter of the address; None removes it."""
    if value is None:
        st.query_params.pop(name, None)
    elif st.query_params.get(name) != str(value):
        st.query_params[name] = str(value)


class Enlarged(NamedTuple):
    """An enlarged image. beside: its column among the branches of the run (see views/branches.py); "": it is one of the images above."""

    method: str
    number: int  # in the set, from 0
    beside: str = ""


def image_in(address: Mapping[str, str]) -> Enlarged | None:
    """The enlarged image of an address, which need not exist; None if there is none."""
    method = address.get(_METHOD_PARAMETER) or address.get(_OLD_METHOD_PARAMETER)
    index = address.get(_IMAGE_PARAMETER, "")
    if method is None or not (index.isascii() and index.isdecimal()):
        return None
    return Enlarged(method, int(index[:9]), address.get(_BESIDE_PARAMETER, ""))


def show_image(image: Enlarged | None) -> None:
    """Puts the image to enlarge into the address; None removes it."""
    put_into_address(_OLD_METHOD_PARAMETER, None)
    put_into_address(_METHOD_PARAMETER, image and image.method)
    put_into_address(_IMAGE_PARAMETER, None if image is None else image.number)
    put_into_address(_BESIDE_PARAMETER, (image and image.beside) or None)


def layer_in_address(count: int, address: Mapping[str, str]) -> int:
    """Index of the layer that an address names, 0 to count - 1; 0 if it names none."""
    number = address.get(_LAYER_PARAMETER, "")
    return min(max(int(number[:9]) - 1, 0), count - 1) if number.isascii() and number.isdecimal() else 0


def show_layer(index: int) -> None:
    """Puts the chosen layer into the address."""
    put_into_address(_LAYER_PARAMETER, index + 1)


def start(config: RunConfig, images: str = "", changes: Sequence[Mapping[str, Any]] = (), executor: str = "") -> None:
    """Queues a run for the user who is logged in, and shows it. Raises RunError if the login has ended.

    images: the browser's name of the file with its images, if they were uploaded for it. changes: live changes that it is to make.
    executor: where it is computed, see RunManager.
    """
    name = default_name(config, text.one_line_text(images, 60))
    show_run(manager().start(config, name, user=rights.user(), changes=changes, executor=executor))


_records: OrderedDict[tuple[str, int, str], list[Record]] = OrderedDict()
_records_lock = threading.Lock()
_RECORDS_KEPT = 8  # stages of runs, shared by all sessions


def records(run: Run, stage: str) -> list[Record]:
    """All records of a stage. Reads only records from the store that are new since the last call."""
    # a resumed run drops the records after its resume state
    key = (run.id, run.attempt, stage)
    with _records_lock:
        known = _records.setdefault(key, [])
        _records.move_to_end(key)
        new = store().records(run.id, stage, after=known[-1].id if known else 0)
        first = {record.series: record.step for record in reversed(new)}
        last = {name: next((record.step for record in reversed(known) if record.series == name), 0) for name in first}
        if any(last[name] >= step for name, step in first.items()):
            # read before the engine of a resumed run dropped the records after its resume state
            known[:] = [record for record in known if record.step < first.get(record.series, record.step + 1)]
        known += new
        while len(_records) > _RECORDS_KEPT:
            _records.popitem(last=False)
        return list(known)


@st.cache_resource(show_spinner=False, max_entries=60)
def shared_cache(key: tuple, _make: Callable[[], Any]) -> Any:
    """The result of `_make`, computed once for all sessions; callers must not modify it."""
    return _make()


def image_methods(run: Run) -> list[str]:
    """Methods whose images of this run, generated or from the user, exist."""
    folder = store().images_folder(run)
    if not run.config.images_from:
        return layout.image_methods(folder)
    return list(layout.user_image_sets(folder, run.config.methods)) if folder.exists() else []


def choose_run(which: RunFilter, label: str, key: str) -> Run | None:
    """A box to choose one of the runs of a filter, starting with the shown one; None if there is none."""
    shown = shown_run(which)
    say_if_another(shown, which)
    if shown is None:
        return None
    runs = {run.id: run for run in offered(which, [shown.id], key)}
    # the key contains the shown run, so that a run that was just started replaces an earlier choice
    chosen = st.selectbox(
        label,
        list(runs),
        index=list(runs).index(shown.id),
        format_func=lambda run_id: title(runs[run_id]),
        key=f"{key}/{shown.id}",
    )
    if chosen != shown.id:
        show_run(chosen)
        st.rerun()
    return runs[chosen]


def offered(which: RunFilter, kept: Sequence[str], key: str, label: str = "Search runs") -> list[Run]:
    """The runs of a filter that a selection box offers, newest first: `kept`, and the newest MOST_LISTED.

    If there are more, a field above the box searches all of them, as the one under Runs does. kept: ids, of any runs. key: of the box.
    label: of the field.
    """
    runs = store().runs(which, most=MOST_LISTED + 1)
    if len(runs) > MOST_LISTED:
        words = st.text_input(
            label,
            key=f"{key}/search",
            placeholder="name, note, tag or network",
            help=f"The box lists the newest {MOST_LISTED} runs. With words here, it lists the newest {MOST_LISTED} that have all of them "
            "in their name, note, tags or network.",
        )
        runs = store().runs(replace(which, words=words), most=MOST_LISTED)
        if not runs:
            st.caption("No run matches the search.")
    known = {run.id: run for run in [*runs, *store().runs(replace(which, ids=kept))]}
    return sorted(known.values(), key=lambda run: (run.created, run.id), reverse=True)


def title(run: Run) -> str:
    """Label of a run in a selection box. The state of an active run is left out, because it changes while the box stays."""
    state = str(run.state) if run.state.is_finished() else "active"
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(run.created))} · {text.shortened(run.name, 70)} · {state}"


@st.cache_data(show_spinner=False, max_entries=8)
def _sheet(folder: str, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    images = SomeImages(Path(folder))
    return images.read(images.spread(count))


def sheet(run: Run, method: str) -> tuple[np.ndarray, np.ndarray] | None:
    """200 evenly spaced images of a finished set, uint8 `(N, C, H, W)`, and their labels; None if the set does not exist."""
    folder = store().images_folder(run) / method
    return _sheet(str(folder), 200) if (folder / layout.MANIFEST).is_file() else None


def class_names(run: Run, labels: Iterable[int]) -> Sequence[str]:
    """Class names of the run's network, enough for these labels; "class 3" and the like where they are unknown."""
    model = run.config.model
    known = MODELS[model][1].classes if model in MODELS else store().result(run.id, "classes") or names_of(model).classes
    return [*known, *(f"class {index}" for index in range(len(known), max(map(int, labels), default=-1) + 1))]
