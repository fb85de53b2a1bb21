"""Branches of a run on the Studio: each beside the run, with images and curves of the batch that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import streamlit as st

from core.reporting import Frame
from core.runs import branches as stored
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session, text
from dashboard.charts.branches import Curves, branch_figure
from dashboard.charts.style import json_of
from dashboard.components import address_widgets, elements, figures, problems
from dashboard.images import contact_sheet
from dashboard.names import method_name
from dashboard.server import rights
from dashboard.tables import iterations
from dashboard.updates import pace
from dashboard.updates.live_view import Values
from dashboard.views import images
from dashboard.views.generation_data import GenerationHistory, frame_at, layer_names, names_for

_CHARTS = {"loss": "Loss", "layers": "Layers over time"}
_PARAMETER = "branch-view"  # of the address: the chart
_IN_A_ROW = 5  # the run and up to four branches
_STATES = {RunState.QUEUED: "starting", RunState.PAUSED: "paused", RunState.FAILED: "failed", RunState.INTERRUPTED: "interrupted"}


class Branch(NamedTuple):
    """A branch and the letter that stands for it on the page."""

    letter: str
    run: Run

    def label(self, method: str) -> str:
        """The heading of its images."""
        return f"{method_name(method)}, branch {self.letter}"


def branches_of(run: Run) -> list[Branch]:
    """The branches of a run, oldest first."""
    return [Branch(chr(ord("A") + index), branch) for index, branch in enumerate(stored.branches(session.store(), run.id))]


def active(branches: Sequence[Branch]) -> bool:
    """Whether one of them is still computed."""
    return any(not branch.run.state.is_finished() for branch in branches)


def layout(branches: Sequence[Branch]) -> list[Any]:
    """Changes when the page must be drawn again, because it has other elements."""
    return [[one.run.id, one.run.state, one.run.attempt, bool(one.run.step)] for one in branches]


def versions(branches: Sequence[Branch]) -> list[Any]:
    """Changes when the histories of an enlarged image should be drawn again."""
    return [pace.chart_version(one.run.state.is_finished(), one.run.step) for one in branches]


def values(run: Run, history: GenerationHistory, at: int | None, branches: Sequence[Branch], address: Mapping[str, str]) -> Values:
    """State of every branch, and images and curves of every batch that has branches. at: the step in the address; None: the newest."""
    found: Values = {f"branch/{one.run.id}": _state(run, one) for one in branches}
    chart = address_widgets.named_option(address, _PARAMETER, _CHARTS)
    for batch, own in _by_batch(run, branches).items():
        span = _span(run, batch)
        wanted = _within(at, span)
        for method in _methods(run, own):
            for label, of, frame in _row(run, own, method, wanted, span):
                found |= _cell(run, of, method, label, frame)
        found[_figure_key(batch)] = {"figure": _figure(run, history, own, span, chart)}
    return found


def draw(run: Run, branches: Sequence[Branch], values: Values, at: int | None) -> None:
    """All branches beside the run. at: as of `values`."""
    image = session.image_in(st.query_params.to_dict())
    if image is not None and not _has(run, branches, image):
        st.warning(text.plain(f"image in the address must be of one of the run's branches, got {image.method} of {image.beside}"))
    branches = [one for one in branches if f"branch/{one.run.id}" in values]  # not one that was started since
    if not branches:
        return
    for branch in branches:
        _draw_state(run, branch, values)
    grouped = _by_batch(run, branches)
    for batch, own in grouped.items():
        if len(run.config.generation.batches) > 1:
            st.markdown(f"**{iterations.group_word(run).capitalize()} {batch + 1}**")
        for method in _methods(run, own):
            columns = [of for of in (run, *(one.run for one in own)) if f"branch sheet/{of.id}/{method}/{batch}" in values]
            for cell, of in elements.grid(columns, _IN_A_ROW):
                with cell:
                    key = f"{of.id}/{method}/{batch}"
                    elements.text_block(f"branch heading/{key}", values[f"branch heading/{key}"], clipped=True)
                    alt = f"{values[f'branch heading/{key}']['title']}, {iterations.group_word(run)} {batch + 1}"
                    images.draw_sheet(values[f"branch sheet/{key}"], alt, f"branch sheet/{key}", method, _column(run, of, batch))
            if image is not None and image.method == method:
                _draw_large(run, image, own, batch, at)
        if batch == next(iter(grouped)):  # one for the charts of all batches
            address_widgets.choose_one("Chart of the branches", _CHARTS, _PARAMETER, label_visibility="collapsed")
        figures.show(values[_figure_key(batch)]["figure"], _figure_key(batch), f"{run.name} branches", "Curves of the run and its branches")


def _column(run: Run, of: Run, batch: int) -> str:
    """A column of the branches in the address: the id of a branch; for the run beside those of a batch, the number of that batch."""
    return str(batch + 1) if of.id == run.id else of.id


def _has(run: Run, branches: Sequence[Branch], image: session.Enlarged) -> bool:
    """Whether an image is in one of the columns, or not meant to be."""
    return not image.beside or any(
        image.method in _methods(run, own) and image.beside in [_column(run, of, batch) for of in (run, *(one.run for one in own))]
        for batch, own in _by_batch(run, branches).items()
    )


def _draw_large(run: Run, image: session.Enlarged, branches: Sequence[Branch], batch: int, at: int | None) -> None:
    """The enlarged image of the address, if it is in one of the columns of this batch, and its history in each of them."""
    span = _span(run, batch)
    leaves = {one.run.id: one.run.branch_at for one in branches}
    rows = {}
    for label, of, frame in _row(run, branches, image.method, _within(at, span), span):
        shared = _kept(run, image.method, range(span.start, leaves.get(of.id, span.stop - 1) + 1))
        kept = shared if of.id == run.id else {**shared, **_kept(of, image.method, range(of.branch_at + 1, span.stop))}
        rows[_column(run, of, batch)] = images.Pictured(label, image.method, frame, kept)
    if image.beside in rows:
        images.draw_enlarged(run, image, list(rows.values()), rows[image.beside])


def _kept(of: Run, method: str, span: range) -> dict[int, Run]:
    """The steps of a span whose images a run has kept, each with the run."""
    return {step: of for step in session.store().frames.steps(of.id, method) if step in span}


def _by_batch(run: Run, branches: Sequence[Branch]) -> dict[int, list[Branch]]:
    """Batch, from 0, -> its branches."""
    found: dict[int, list[Branch]] = {}
    for branch in branches:
        found.setdefault((branch.run.branch_at - 1) // run.config.generation.iterations, []).append(branch)
    return dict(sorted(found.items()))


def _methods(run: Run, branches: Sequence[Branch]) -> list[str]:
    """The methods that these branches have, in the order of the run."""
    return [method for method in run.config.methods if any(method in one.run.config.methods for one in branches)]


def _span(run: Run, batch: int) -> range:
    """The steps of a batch."""
    per_batch = run.config.generation.iterations
    return range(batch * per_batch + 1, (batch + 1) * per_batch + 1)


def _within(at: int | None, span: range) -> int | None:
    """The step in the address if it is one of this batch; None, the newest, if it is not."""
    return at if at is not None and at in span else None


def _state(run: Run, branch: Branch) -> dict[str, Any]:
    """Heading of a branch, and how far it is while it is computed."""
    own = branch.run
    lines, progress = [], None
    if own.state is RunState.RUNNING and own.total:
        pauses = "; the run pauses until then" if run.state is RunState.RUNNING else ""
        lines, progress = [f"{own.step:,} of {own.total:,} steps{pauses}"], min(own.step / own.total, 1.0)
    elif own.state is not RunState.COMPLETE:
        lines = [own.error or _STATES.get(own.state, str(own.state))]
    return elements.text_block_data(lines, f"{branch.letter}: {own.name}", progress)


def _draw_state(run: Run, branch: Branch, values: Values) -> None:
    own = branch.run
    refusal = rights.objection(run)
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.container(width="stretch"):
            elements.text_block(f"branch/{own.id}", values[f"branch/{own.id}"])
        for word, icon, act in (
            *((("Resume", ":material/play_arrow:", session.manager().resume),) if own.state.can_resume() else ()),
            ("Remove", ":material/close:", session.manager().remove_branch),
        ):
            st.button(
                word,
                icon=icon,
                key=f"{word} {own.id}",
                on_click=_act,
                args=(run, act, own.id),
                disabled=bool(refusal),
                help=text.plain(refusal) or None,
            )


def _act(run: Run, action: Any, branch_id: str) -> None:
    with problems.shown(st.toast):
        rights.require([run])
        action(branch_id)
    image = session.image_in(st.query_params.to_dict())
    if image is not None and not _has(run, branches_of(run), image):  # its branch was removed
        session.show_image(None)


def _row(run: Run, branches: Sequence[Branch], method: str, wanted: int | None, span: range) -> list[tuple[str, Run, Frame]]:
    """Heading, whose, and images of a method by the run and its branches, at one step or the newest of each.

    Up to where it leaves the run, a branch has the images of the run.
    """
    found = []
    if (frame := _frame(run, method, wanted, span)) is not None:
        found.append((method_name(method), run, frame))
    for branch in branches:
        if method not in branch.run.config.methods:
            continue
        at = branch.run.branch_at
        own = _frame(branch.run, method, wanted, range(at + 1, span.stop)) if wanted is None or wanted > at else None
        shared = own or _frame(run, method, at if wanted is None else min(wanted, at), span)
        if shared is not None:
            found.append((branch.label(method), branch.run, shared))
    return found


def _frame(run: Run, method: str, wanted: int | None, span: range) -> Frame | None:
    """The images at a step, or the last ones before it, or the newest if None; None if there are none in `span`."""
    newest = frame_at(run, method, None)
    kept = list(_kept(run, method, span))
    if newest is not None and newest.step in span and (wanted is None or newest.step <= wanted):
        return newest
    before = [step for step in kept if wanted is None or step <= wanted]
    return frame_at(run, method, before[-1] if before else kept[0]) if kept else None


def _cell(run: Run, of: Run, method: str, label: str, frame: Frame) -> Values:
    batch = (frame.step - 1) // run.config.generation.iterations
    record = iterations.record_at(session.records(of, "generation"), method, frame.step)
    line = f"{iterations.iteration_label(frame.step, run)} · {iterations.summary(frame, record)}".rstrip(" ·")
    key = f"{of.id}/{method}/{batch}"
    picture = session.shared_cache(("branch sheet", of.id, of.attempt, method, frame.step), lambda: _sheet(run, frame))
    return {f"branch heading/{key}": elements.text_block_data([line], label), f"branch sheet/{key}": picture}


def _sheet(run: Run, frame: Frame) -> dict[str, Any]:
    return vars(contact_sheet.sheet(frame, names_for(run, frame)))


def _figure_key(batch: int) -> str:
    return f"figure/branches {batch}"


def _figure(run: Run, history: GenerationHistory, branches: Sequence[Branch], span: range, chart: str) -> str:
    """The curves, drawn again once for all viewers, at most every pace.chart_seconds()."""
    store = session.store()
    curves = [Curves(one.letter, one.run.branch_at, session.records(one.run, "generation"), store.changes(one.run.id)) for one in branches]
    methods = _methods(run, branches)
    records = [record for record in history.records if record.series in methods]
    layers = layer_names(run, len(history.records[0].data["layers"]))
    at_rest = not active(branches) and (run.state.is_finished() or run.state is RunState.PAUSED)
    count = len(records) + sum(len(own.records) for own in curves)
    key = (
        "branches", run.id, run.attempt, chart, span.start, pace.chart_version(at_rest, count), len(history.changes),
        tuple((one.run.id, one.run.state, one.run.attempt) for one in branches),
    )  # fmt: skip
    return session.shared_cache(key, lambda: json_of(branch_figure(chart, records, history.changes, curves, span, layers, history.terms)))
