"""The generation of a run on the page: knobs, iteration player, both methods with their images, curves and layers. Reads the store only."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import Field
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import streamlit as st

from core.config import GenerationConfig, live_knobs
from core.errors import CoreError
from core.reporting import Frame, RunningStatistics
from core.runs.records import Record
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session, text
from dashboard.charts import generation as generation_charts
from dashboard.charts.style import json_of
from dashboard.components import elements, figures
from dashboard.forms.knobs import live_sliders
from dashboard.images import contact_sheet
from dashboard.names import class_names, method_name
from dashboard.tables import iterations
from dashboard.updates import live_view

VIEWS = {"loss": "Loss", "layers": "Layers over time", "heatmaps": "Heatmaps", "layer": "One layer"}


def generation_finished(run: Run) -> bool:
    """Whether all images are made, so that pictures and curves of the generation stay as they are."""
    return run.state.is_finished() or (
        run.stage != "generation" and session.store().result(run.id, f"generation/{run.config.methods[-1]}") is not None
    )


def live_values(run: Run, method: str) -> dict[str, float]:
    """The knobs of a method as they stand: those of the config, with what was changed since."""
    values = {name: getattr(run.config.generation, name) for name in live_knobs(GenerationConfig)}
    for change in session.store().changes(run.id):
        if change["method"] == method:
            values[change["name"]] = change["value"]
    return values


def knobs(run: Run) -> None:
    """Sliders that act on the next iteration of one method or of all, as long as this server works on the run."""
    if generation_finished(run) or not session.manager().controls(run.id):
        return
    methods = list(run.config.methods)
    chosen = methods
    if len(methods) > 1:
        names = {"both": "both", **{method: method_name(method) for method in methods}}
        act_on = st.segmented_control(
            "Knobs of",
            list(names),
            default="both",
            required=True,
            format_func=lambda method: names[method],
            key="knobs of",
            help="The sliders act on the next iteration of the running job. Every change is marked on the curves, with its value.",
        )
        chosen = methods if act_on == "both" else [act_on]
    # of a knob that only one method has, that one's value
    owners = {name: next((method for method in chosen if method in knob.metadata["of"]), chosen[0]) for name, knob in _live().items()}
    values = {name: live_values(run, owner)[name] for name, owner in owners.items()}
    live_sliders(
        values,
        f"live/{run.id}" if chosen == methods else f"live/{run.id}/{chosen[0]}",
        lambda name, key: _turned(run, name, key, chosen),
        chosen,
    )


def _live() -> dict[str, Field]:
    return live_knobs(GenerationConfig)


def _turned(run: Run, name: str, key: str, chosen: Sequence[str]) -> None:
    of = _live()[name].metadata["of"]
    try:
        session.manager().control(run.id).set(name, st.session_state[key], [method for method in chosen if not of or method in of])
    except CoreError as error:
        st.toast(text.error(error), icon=":material/error:")


class Past(NamedTuple):
    """What is there to be shown of the generation so far."""

    records: list[Record]
    kept: list[int]  # steps whose images every method has kept
    newest: dict[str, Frame]  # method -> its images, all of one step
    changes: Sequence[Mapping[str, Any]]

    @property
    def latest(self) -> int:
        return next(iter(self.newest.values())).step

    @property
    def marks(self) -> list[tuple[int, str]]:
        return [(step, what) for step, (what, _) in generation_charts.mark_texts(self.changes).items()]


class Moment(NamedTuple):
    """All methods at one step."""

    past: Past
    frames: dict[str, Frame]
    records: dict[str, Record]  # method -> its figures of that step
    where: str  # the step in words


def _kept_moments(run: Run) -> list[int]:
    return iterations.common([session.store().frames.steps(run.id, method) for method in run.config.methods])


def _past(run: Run) -> Past | None:
    """None before the first images."""
    records = session.records(run, "generation")
    kept = _kept_moments(run)
    newest = _newest(run, kept)
    return Past(records, kept, newest, session.store().changes(run.id)) if newest and records else None


def _moment(run: Run, past: Past, at: int | None) -> Moment:
    frames = past.newest if at is None else {method: _frame(run, method, at) or newest for method, newest in past.newest.items()}
    records = {method: record for method, frame in frames.items() if (record := iterations.record_at(past.records, method, frame.step))}
    return Moment(past, frames, records, iterations.place(next(iter(frames.values())).step, run))


def _draw(run: Run, made: str) -> None:
    """Status and knobs while there are images to come; the player, both methods where it stands, and the chosen view of the numbers."""
    if not generation_finished(run):
        live_view.status(run, made)
        knobs(run)
    past = _past(run)
    if past is None:
        if not run.state.is_finished():
            st.caption("Images and curves appear here with the first iteration.")
        return
    moment = _moment(run, past, _player(run, past, made))
    _sheets(run, moment, made)
    _large(run, moment.frames, past.kept)
    _numbers(run, moment, made)


def _is_between_methods(run: Run) -> bool:
    """Whether one method has come further than another, and so what is shown of them is older."""
    frames = [_frame(run, method, None) for method in run.config.methods]
    return len({frame.step for frame in frames if frame is not None}) > 1


def _phase(run: Run, address: Mapping[str, str]) -> tuple[int, bool]:
    return len(session.store().changes(run.id)), bool(_newest(run, _kept_moments(run)))


def pieces(run: Run, address: Mapping[str, str], watcher: session.Watcher) -> dict[str, dict[str, Any]]:
    """What has changed on a page since it was drawn (see live.Part)."""
    known = live_view.status_pieces(run, address, watcher)
    past = _past(run)
    if past is None:
        return known
    start, _ = iterations.from_address(address.get(session.AT_PARAMETER))
    at = iterations.nearest(start, past.kept, past.latest)
    moment = _moment(run, past, at)
    known[_player_key(run)] = elements.player_data(past.kept, past.latest, at, past.marks)
    for method in moment.frames:
        known[_heading_key(run, method)] = elements.words_data(*_heading(moment, method))
        known[_sheet_key(run, method)] = vars(_sheet(run, moment, method))
    view = _view(address)
    known[_lines_key(run)] = elements.words_data(_lines(run, moment, view))
    for name, drawn in _figures(run, moment, view, address, watcher).items():
        known[name] = {"figure": drawn}
    return known


GENERATION = live_view.Part(
    "generation",
    _draw,
    pieces,
    _phase,
    until=generation_finished,
    # what a press on an image opens has too many elements to be streamed to
    is_redrawn=lambda address: session.image_in(address)[0] is not None,
    is_behind=_is_between_methods,
)


def _player_key(run: Run) -> str:
    return f"player/{run.id}"


def _player(run: Run, past: Past, made: str) -> int | None:
    start, problem = iterations.from_address(st.query_params.get(session.AT_PARAMETER))
    if problem:
        st.warning(text.plain(problem))
    return elements.player(
        run.id,
        past.kept,
        past.latest,
        start,
        "" if generation_finished(run) else live_view.pace(session.watcher(), redraw=not made),
        run.config.generation.iterations,
        len(run.config.generation.batches),
        past.marks,
        _player_key(run),
        made,
    )


_pairs: OrderedDict[tuple[str, int], dict[str, Frame]] = OrderedDict()
_pairs_lock = threading.Lock()
_PAIRS_KEPT = 8


def _newest(run: Run, kept: Sequence[int]) -> dict[str, Frame]:
    """The newest moment of each method, all at the same iteration: while one method is ahead, an earlier one. Empty before the first."""
    methods, key = run.config.methods, (run.id, run.attempt)
    read = {method: _frame(run, method, None) for method in methods}
    frames = {method: frame for method, frame in read.items() if frame is not None}
    with _pairs_lock:
        if len(frames) == len(methods) and len({frame.step for frame in frames.values()}) == 1:
            _pairs[key] = frames
            _pairs.move_to_end(key)
            while len(_pairs) > _PAIRS_KEPT:
                _pairs.popitem(last=False)
            return frames
        if key in _pairs:
            return _pairs[key]
    # nobody has looked yet, or the run was stopped between two methods
    together = {method: frame for method in methods if kept and (frame := _frame(run, method, kept[-1])) is not None}
    return together if len(together) == len(methods) else {}


def _frame(run: Run, method: str, step: int | None) -> Frame | None:
    """A kept moment, or the newest for None; read once for all who look at it."""
    version = session.store().frames.version(run.id, method, step)
    return session.kept(("frame", run.id, method, step, version), lambda: session.store().frames.read(run.id, method, step))


def _sheets(run: Run, moment: Moment, made: str) -> None:
    method, index = session.image_in(st.query_params.to_dict())
    for place, own in zip(st.columns(len(moment.frames)), moment.frames):
        with place:
            elements.words(_heading_key(run, own), *_heading(moment, own), clipped=True, made=made)
            elements.sheet(
                _sheet(run, moment, own),
                f"synthetic images by {method_name(own)}",
                index if own == method else None,
                _sheet_key(run, own),
                partial(_picked, own),
                made,
            )


def _heading_key(run: Run, method: str) -> str:
    return f"heading/{run.id}/{method}"


def _heading(moment: Moment, method: str) -> tuple[list[str], str]:
    summary = iterations.summary(moment.frames[method], moment.records.get(method))
    return [f"{moment.where} · {summary}".rstrip(" ·")], method_name(method)


def _sheet_key(run: Run, method: str) -> str:
    return f"sheet/{run.id}/{method}"


def _sheet(run: Run, moment: Moment, method: str) -> contact_sheet.Sheet:
    frame = moment.frames[method]
    key = ("sheet", run.id, run.attempt, method, frame.step)
    return session.kept(key, lambda: contact_sheet.sheet(frame, _names(run.config.model, frame)))


def _picked(method: str, index: int) -> None:
    """An image was pressed: its large view, or none if it was there already."""
    session.show_image(None if session.image_in(st.query_params.to_dict()) == (method, index) else (method, index))


def _large(run: Run, frames: Mapping[str, Frame], kept: Sequence[int]) -> None:
    """The image in the address, large, with its history in every method: all began from the same noise."""
    method, index = session.image_in(st.query_params.to_dict())
    if method is None:
        st.caption(
            "Point at an image for its class and what the teacher takes it for (a white corner: for another class); press it to see more."
        )
        return
    if method not in frames or not 0 <= index < len(frames[method].labels):
        allowed = f"allowed are {', '.join(frames)} and 0 to {len(next(iter(frames.values())).labels) - 1}"
        st.warning(text.plain(f"image {index} of method {method} in the address is not there: {allowed}"))
        return
    frame = frames[method]
    per_batch = run.config.generation.iterations
    model = run.config.model
    names = _names(model, frame)
    steps = iterations.history(frame.step, kept, per_batch)
    with st.container(border=True, key="large view"):
        left, right = st.columns([1, 4])
        with left:
            st.html(contact_sheet.large_html(frame, index, f"image {index} by {method_name(method)}"))
            lines = contact_sheet.known_of(frame, index, names).split("\n")
            st.markdown(f"**{text.plain(method_name(method))}, image {index}: {text.plain(lines[0])}**")
            st.caption(text.plain(lines[1] if len(lines) > 1 else "What the teacher sees was not written down by this run."))
            st.button("Close", icon=":material/close:", key="close image", on_click=session.show_image, args=(None,))
        with right:
            for own in frames:
                st.markdown(f"{text.plain(method_name(own))} :small[:gray[iteration, and the teacher's confidence]]")
                key = ("strip", run.id, run.attempt, own, index, tuple(steps), frame.step)
                st.html(session.kept(key, partial(_strip, run, own, index, steps, frames[own], model)))


def _strip(run: Run, method: str, index: int, steps: Sequence[int], now: Frame, model: str) -> str:
    per_batch = run.config.generation.iterations
    known = [
        contact_sheet.alone(now, index) if step == now.step else _one_image(run.id, run.attempt, method, step, index) for step in steps
    ]
    frames = [frame for frame in known if frame is not None]
    titles = [str((frame.step - 1) % per_batch + 1) for frame in frames]
    return contact_sheet.strip_html(frames, titles, _names(model, *frames), now.step)


@lru_cache(maxsize=500)  # of 3 kB each: a strip is drawn again with each iteration, and only one image of it is new
def _one_image(run_id: str, attempt: int, method: str, step: int, index: int) -> Frame | None:
    frame = session.store().frames.read(run_id, method, step)
    return contact_sheet.alone(frame, index) if frame is not None and index < len(frame.labels) else None


def _names(model: str, *frames: Frame) -> Sequence[str]:
    """Class names for all that frames show and the teacher takes it for."""
    labels = [label for frame in frames for of in (frame.labels, frame.predicted) if of is not None for label in of]
    return class_names(model, labels)


def _view(address: Mapping[str, str]) -> str:
    """Which of VIEWS the address names, or the first."""
    wanted = address.get(session.VIEW_PARAMETER, "")
    return wanted if wanted in VIEWS else "loss"


def _numbers(run: Run, moment: Moment, made: str) -> None:
    """The view that was chosen, and only that one."""
    view = st.segmented_control(
        "View",
        list(VIEWS),
        default=_view(st.query_params),
        required=True,
        format_func=lambda name: VIEWS[name],
        key="view",
        on_change=lambda: session.put_into_address(session.VIEW_PARAMETER, st.session_state["view"]),
        label_visibility="collapsed",
    )
    elements.words(_lines_key(run), _lines(run, moment, view), made=made)
    drawn = _figures(run, moment, view, st.query_params, session.watcher())
    if view == "layer":
        _one_layer(run, moment, drawn, made)
        return
    title = f"{VIEWS[view]}: curves over iterations" if view != "heatmaps" else "L_BNS by layer and iteration"
    ((name, figure),) = drawn.items()
    figures.show(figure, name, f"{run.name} {VIEWS[view]}", title, made=made)


def _lines_key(run: Run) -> str:
    return f"numbers/{run.id}"


def _lines(run: Run, moment: Moment, view: str) -> list[str]:
    """What is said above the figures of a view."""
    if view == "loss":
        return iterations.values(moment.records, generation_charts.PARTS, moment.where)
    if view == "layer":
        return [f"L_BNS of every layer at {moment.where}. Press a bar to look into its layer."]
    what = "L_BNS of each BatchNorm layer, on one scale." if view == "layers" else "L_BNS of each BatchNorm layer."
    return [f"{what} At {moment.where}: {_extremes(moment.records, _layer_names(run, moment))}"]


def _layer_names(run: Run, moment: Moment) -> Sequence[str]:
    return layer_names(run, len(moment.past.records[0].data["layers"]))


def _extremes(records: Mapping[str, Record], names: Sequence[str]) -> str:
    """Which layer is furthest from its statistics, for each method."""
    said = []
    for method, record in records.items():
        values = record.data["layers"]
        worst = max(range(len(values)), key=lambda index: values[index])
        said.append(f"{method_name(method)} highest in layer {worst + 1} ({names[worst]}) with {values[worst]:.3g}")
    return ", ".join(said)


_BARS, _CHANNELS = "figure/bars", "figure/channels"


def _figures(run: Run, moment: Moment, view: str, address: Mapping[str, str], watcher: session.Watcher) -> dict[str, str]:
    """The figures of a view: key -> JSON. Those over iterations are drawn at most every live.CHART_SECONDS, once for all who look at them,
    and at once after a change."""
    past, names = moment.past, _layer_names(run, moment)
    if view == "layer":
        return _layer_figures(run, moment, names, session.layer_in_address(len(names), address))
    makers = {
        "loss": lambda: generation_charts.loss_figure(past.records, past.changes),
        "layers": lambda: generation_charts.layer_figure(past.records, names, past.changes),
        "heatmaps": lambda: generation_charts.layer_heatmaps(past.records, list(run.config.methods), names, past.changes),
    }
    still = generation_finished(run) or run.state is RunState.PAUSED
    key = ("json", run.id, run.attempt, view, live_view.moment(still, len(past.records), watcher), len(past.changes))
    return {f"figure/{view}": session.kept(key, lambda: json_of(makers[view]()))}


def _layer_figures(run: Run, moment: Moment, names: Sequence[str], layer: int) -> dict[str, str]:
    """All layers at the shown moment, and the channels of one, if the run has written them down."""
    step = next(iter(moment.frames.values())).step
    bars = session.kept(
        ("bars", run.id, run.attempt, step, layer), lambda: json_of(generation_charts.layer_bars(moment.records, names, layer))
    )
    running = session.kept(("running", run.id, run.attempt), lambda: session.store().frames.running_statistics(run.id))
    channels = running and session.kept(("channels", run.id, run.attempt, step, layer), lambda: _channels(moment.frames, running, layer))
    return {_BARS: bars, **({_CHANNELS: channels} if channels else {})}


def _one_layer(run: Run, moment: Moment, drawn: Mapping[str, str], made: str) -> None:
    """All layers at the shown moment, and the channels of the one that is chosen."""
    names = _layer_names(run, moment)
    layer = session.layer_in_address(len(names), st.query_params)
    step = next(iter(moment.frames.values())).step
    title = "L_BNS of every layer at the shown iteration"
    figures.show(drawn[_BARS], _BARS, f"{run.name} L_BNS by layer at {step}", title, session.show_layer, made)
    box = f"layer/{layer}"  # another box for another layer: it begins with what a bar has chosen
    st.selectbox(
        "Layer",
        range(len(names)),
        index=layer,
        format_func=lambda index: f"{index + 1}: {names[index]}",
        key=box,
        on_change=lambda: session.show_layer(st.session_state[box]),
        help="Also chosen by a press on its bar.",
    )
    if _CHANNELS not in drawn:
        st.caption("This run did not write down the statistics of the channels: runs of this version do.")
        return
    st.caption("A channel on the dashed line has in the batch just what the network remembers of its training.")
    title = f"channels of layer {layer + 1}, batch against running statistics"
    figures.show(drawn[_CHANNELS], _CHANNELS, f"{run.name} channels of layer {layer + 1}", title, made=made)


def _channels(frames: Mapping[str, Frame], running: RunningStatistics, layer: int) -> str | None:
    figure = generation_charts.channel_figure(frames, running, layer)
    return None if figure is None else json_of(figure)


def layer_names(run: Run, count: int) -> Sequence[str]:
    """Names of the `count` BatchNorm layers of the run's network; numbers where they are not known."""
    # torch takes seconds to import, and the server does without it: only a run of an earlier version does not say what its layers are
    names = session.store().result(run.id, "layers") or _names_of_layers(run.config.model)
    return names if len(names) == count else [f"layer {index + 1}" for index in range(count)]


@cache
def _names_of_layers(model: str) -> Sequence[str]:
    from core.models.full_precision import batch_norm_names_of

    try:
        return batch_norm_names_of(model)
    except CoreError:
        return []
