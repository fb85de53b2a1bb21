"""The generation of a run on the page: knobs, iteration player, both lanes with their images, curves and layers. Reads the store only."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial

import streamlit as st

from core.config import LIVE_KNOBS
from core.errors import CoreError
from core.reporting import Frame, RunningStatistics
from core.runs.state import RunState
from core.runs.store import Record, Run
from dashboard import charts, elements, figures, forms, images, live, moments, state, text
from dashboard.chart_style import json_of, lane_name

VIEWS = {"loss": "Loss", "layers": "Layers over time", "heatmaps": "Heatmaps", "layer": "One layer"}
_OWNERS = {"epsilon": "mi-fgsm", "mu": "mi-fgsm", "lr": "adam"}  # of the knobs that only one optimizer has


def generation_finished(run: Run) -> bool:
    """Whether all images are made, so that pictures and curves of the generation stay as they are."""
    return run.state.is_finished() or (
        run.stage != "generation" and state.store().result(run.id, f"generation/{run.config.optimizers[-1]}") is not None
    )


def live_values(run: Run, lane: str) -> dict[str, float]:
    """The knobs of a lane as they stand: those of the config, with what was changed since."""
    values = {name: getattr(run.config.generation, name) for name in LIVE_KNOBS}
    for change in state.store().changes(run.id):
        if change["lane"] == lane:
            values[change["name"]] = change["value"]
    return values


def knobs(run: Run) -> None:
    """Sliders that act on the next iteration of one lane or of all, as long as this server works on the run."""
    if generation_finished(run) or not state.manager().controls(run.id):
        return
    lanes = list(run.config.optimizers)
    chosen = lanes
    if len(lanes) > 1:
        names = {"both": "both", **{lane: lane_name(lane) for lane in lanes}}
        act_on = st.segmented_control(
            "Knobs of",
            list(names),
            default="both",
            required=True,
            format_func=lambda lane: names[lane],
            key="knobs of",
            help="The sliders act on the next iteration of the running job. Every change is marked on the curves, with its value.",
        )
        chosen = lanes if act_on == "both" else [act_on]
    # of a knob that only one optimizer has, that one's value
    values = {name: live_values(run, _OWNERS.get(name, chosen[0]))[name] for name in LIVE_KNOBS}
    forms.live_sliders(
        values,
        f"live/{run.id}" if chosen == lanes else f"live/{run.id}/{chosen[0]}",
        lambda name, key: _turned(run, name, key, chosen),
        {"mu": f"of {lane_name('mi-fgsm')}"} if len(lanes) > 1 else None,  # the other two that one lane has name it anyway
        {name for name, owner in _OWNERS.items() if owner not in chosen},
    )


def _turned(run: Run, name: str, key: str, chosen: Sequence[str]) -> None:
    owner = _OWNERS.get(name)
    try:
        state.manager().control(run.id).set(name, st.session_state[key], [owner] if owner else list(chosen))
    except CoreError as error:
        st.toast(text.error(error), icon=":material/error:")


def watch(run: Run) -> None:
    """The player, both lanes at the moment it stands at, and the chosen view of the numbers."""
    lanes = list(run.config.optimizers)
    records = state.records(run, "generation")
    kept = moments.common([state.store().frame_steps(run.id, lane) for lane in lanes])
    newest = _newest(run, kept)
    if not newest or not records:
        if not run.state.is_finished():
            st.caption("Images and curves appear here with the first iteration.")
        return
    latest = newest[lanes[0]].step
    changes = state.store().changes(run.id)
    at = _player(run, kept, latest, charts.mark_texts(changes))
    frames = newest if at is None else {lane: _frame(run, lane, at) or newest[lane] for lane in lanes}
    at_records = {lane: record for lane in lanes if (record := moments.record_at(records, lane, frames[lane].step))}
    _sheets(run, frames, at_records)
    _large(run, frames, kept)
    _numbers(run, records, changes, frames, at_records, at)


def _player(run: Run, kept: Sequence[int], latest: int, marks: Mapping[int, tuple[str, list[str]]]) -> int | None:
    start, problem = moments.from_address(st.query_params.get(state.AT_PARAMETER))
    if problem:
        st.warning(text.plain(problem))
    return elements.player(
        run.id,
        kept,
        latest,
        start,
        "" if generation_finished(run) else live.pace(),
        run.config.generation.iterations,
        len(run.config.generation.batches),
        [(step, what) for step, (what, _) in marks.items()],
    )


_pairs: OrderedDict[tuple[str, int], dict[str, Frame]] = OrderedDict()
_pairs_lock = threading.Lock()
_PAIRS_KEPT = 8


def _newest(run: Run, kept: Sequence[int]) -> dict[str, Frame]:
    """The newest moment of each lane, all at the same iteration: while one lane is ahead, an earlier one. Empty before the first."""
    lanes, key = run.config.optimizers, (run.id, run.attempt)
    read = {lane: _frame(run, lane, None) for lane in lanes}
    frames = {lane: frame for lane, frame in read.items() if frame is not None}
    with _pairs_lock:
        if len(frames) == len(lanes) and len({frame.step for frame in frames.values()}) == 1:
            _pairs[key] = frames
            _pairs.move_to_end(key)
            while len(_pairs) > _PAIRS_KEPT:
                _pairs.popitem(last=False)
            return frames
        if key in _pairs:
            return _pairs[key]
    # nobody has looked yet, or the run was stopped between two lanes
    together = {lane: frame for lane in lanes if kept and (frame := _frame(run, lane, kept[-1])) is not None}
    return together if len(together) == len(lanes) else {}


def _frame(run: Run, lane: str, step: int | None) -> Frame | None:
    """A kept moment, or the newest for None; read once for all who look at it."""
    version = state.store().frame_version(run.id, lane, step)
    return state.kept(("frame", run.id, lane, step, version), lambda: state.store().frame(run.id, lane, step))


def _sheets(run: Run, frames: Mapping[str, Frame], records: Mapping[str, Record]) -> None:
    lane, index = state.image_in_address()
    for place, (own, frame) in zip(st.columns(len(frames)), frames.items()):
        with place:
            names = _names(run.config.generation.model, frame)
            where = moments.place(frame.step, run)
            st.html(images.heading_html(lane_name(own), f"{where} · {moments.summary(frame, records.get(own))}".rstrip(" ·")))
            key = ("sheet", run.id, run.attempt, own, frame.step)
            elements.sheet(
                state.kept(key, partial(images.sheet, frame, names)),
                f"synthetic images by {lane_name(own)}",
                index if own == lane else None,
                f"sheet/{run.id}/{own}",
                partial(_picked, own),
            )


def _picked(lane: str, index: int) -> None:
    """An image was pressed: its large view, or none if it was there already."""
    state.show_image(None if state.image_in_address() == (lane, index) else (lane, index))


def _large(run: Run, frames: Mapping[str, Frame], kept: Sequence[int]) -> None:
    """The image in the address, large, with its history in every lane: all began from the same noise."""
    lane, index = state.image_in_address()
    if lane is None:
        st.caption(
            "Point at an image for its class and what the teacher takes it for (a white corner: for another class); press it to see more."
        )
        return
    if lane not in frames or not 0 <= index < len(frames[lane].labels):
        allowed = f"allowed are {', '.join(frames)} and 0 to {len(next(iter(frames.values())).labels) - 1}"
        st.warning(text.plain(f"image {index} of lane {lane} in the address is not there: {allowed}"))
        return
    frame = frames[lane]
    per_batch = run.config.generation.iterations
    model = run.config.generation.model
    names = _names(model, frame)
    steps = moments.history(frame.step, kept, per_batch)
    with st.container(border=True, key="large view"):
        left, right = st.columns([1, 4])
        with left:
            st.html(images.large_html(frame, index, f"image {index} by {lane_name(lane)}"))
            lines = images.known_of(frame, index, names).split("\n")
            st.markdown(f"**{text.plain(lane_name(lane))}, image {index}: {text.plain(lines[0])}**")
            st.caption(text.plain(lines[1] if len(lines) > 1 else "What the teacher sees was not written down by this run."))
            st.button("Close", icon=":material/close:", key="close image", on_click=state.show_image, args=(None,))
        with right:
            for own in frames:
                st.markdown(f"{text.plain(lane_name(own))} :small[:gray[iteration, and the teacher's confidence]]")
                key = ("strip", run.id, run.attempt, own, index, tuple(steps), frame.step)
                st.html(state.kept(key, partial(_strip, run, own, index, steps, frames[own], model)))


def _strip(run: Run, lane: str, index: int, steps: Sequence[int], now: Frame, model: str) -> str:
    per_batch = run.config.generation.iterations
    known = [images.alone(now, index) if step == now.step else _one_image(run.id, run.attempt, lane, step, index) for step in steps]
    frames = [frame for frame in known if frame is not None]
    titles = [str((frame.step - 1) % per_batch + 1) for frame in frames]
    return images.strip_html(frames, titles, _names(model, *frames), now.step)


@lru_cache(maxsize=500)  # of 3 kB each: a strip is drawn again with each iteration, and only one image of it is new
def _one_image(run_id: str, attempt: int, lane: str, step: int, index: int) -> Frame | None:
    frame = state.store().frame(run_id, lane, step)
    return images.alone(frame, index) if frame is not None and index < len(frame.labels) else None


def _names(model: str, *frames: Frame) -> Sequence[str]:
    """Class names for all that frames show and the teacher takes it for."""
    labels = [label for frame in frames for of in (frame.labels, frame.predicted) if of is not None for label in of]
    return live.classes(model, labels)


def _numbers(
    run: Run,
    records: list[Record],
    changes: Sequence[Mapping],
    frames: Mapping[str, Frame],
    at_records: Mapping[str, Record],
    at: int | None,
) -> None:
    """The view that was chosen, and only that one."""
    wanted = st.query_params.get(state.VIEW_PARAMETER)
    view = st.segmented_control(
        "View",
        list(VIEWS),
        default=wanted if wanted in VIEWS else "loss",
        required=True,
        format_func=lambda name: VIEWS[name],
        key="view",
        on_change=lambda: state.put_into_address(state.VIEW_PARAMETER, st.session_state["view"]),
        label_visibility="collapsed",
    )
    names = layer_names(run, len(records[0].data["layers"]))
    where = moments.place(next(iter(frames.values())).step, run)
    if view == "loss":
        st.caption("  \n".join(map(text.plain, moments.values(at_records, charts.PARTS, where))))
        _over_time(run, records, changes, view, lambda: charts.loss_figure(records, changes))
    elif view == "layers":
        st.caption(f"L_BNS of each BatchNorm layer, on one scale. At {where}: {_extremes(at_records, names)}")
        _over_time(run, records, changes, view, lambda: charts.layer_figure(records, names, changes))
    elif view == "heatmaps":
        st.caption(f"L_BNS of each BatchNorm layer. At {where}: {_extremes(at_records, names)}")
        lanes = list(run.config.optimizers)
        _over_time(run, records, changes, view, lambda: charts.layer_heatmaps(records, lanes, names, changes))
    else:
        _one_layer(run, names, frames, at_records, where)


def _extremes(records: Mapping[str, Record], names: Sequence[str]) -> str:
    """Which layer is furthest from its statistics, for each lane."""
    said = []
    for lane, record in records.items():
        values = record.data["layers"]
        worst = max(range(len(values)), key=lambda index: values[index])
        said.append(f"{text.plain(lane_name(lane))} highest in layer {worst + 1} ({text.plain(names[worst])}) with {values[worst]:.3g}")
    return ", ".join(said)


def _over_time(run: Run, records: list[Record], changes: Sequence[Mapping], view: str, make: Callable[[], charts.Figure]) -> None:
    """A figure over iterations, drawn at most every live.CHART_SECONDS, once for all who look at it, and at once after a change."""
    still = generation_finished(run) or run.state is RunState.PAUSED
    moment = len(records) if still else live.turn()
    drawn = state.kept(("json", run.id, run.attempt, view, moment, still, len(changes)), lambda: json_of(make()))
    title = f"{VIEWS[view]}: curves over iterations" if view != "heatmaps" else "L_BNS by layer and iteration"
    figures.show(drawn, f"figure/{view}", f"{run.name} {VIEWS[view]}", title)


def _one_layer(run: Run, names: Sequence[str], frames: Mapping[str, Frame], records: Mapping[str, Record], where: str) -> None:
    """All layers at the shown moment, and the channels of the one that is chosen."""
    layer = state.layer_in_address(len(names))
    step = next(iter(frames.values())).step
    st.caption(f"L_BNS of every layer at {where}. Press a bar to look into its layer.")
    bars = state.kept(("bars", run.id, run.attempt, step, layer), lambda: json_of(charts.layer_bars(records, names, layer)))
    title = "L_BNS of every layer at the shown iteration"
    figures.show(bars, "figure/bars", f"{run.name} L_BNS by layer at {step}", title, state.show_layer)
    box = f"layer/{layer}"  # another box for another layer: it begins with what a bar has chosen
    st.selectbox(
        "Layer",
        range(len(names)),
        index=layer,
        format_func=lambda index: f"{index + 1}: {names[index]}",
        key=box,
        on_change=lambda: state.show_layer(st.session_state[box]),
        help="Also chosen by a press on its bar.",
    )
    running = state.kept(("running", run.id, run.attempt), lambda: state.store().running_statistics(run.id))
    drawn = running and state.kept(("channels", run.id, run.attempt, step, layer), lambda: _channels(frames, running, layer))
    if not drawn:
        st.caption("This run did not write down the statistics of the channels: runs of this version do.")
        return
    st.caption("A channel on the dashed line has in the batch just what the network remembers of its training.")
    title = f"channels of layer {layer + 1}, batch against running statistics"
    figures.show(drawn, "figure/channels", f"{run.name} channels of layer {layer + 1}", title)


def _channels(frames: Mapping[str, Frame], running: RunningStatistics, layer: int) -> str | None:
    figure = charts.channel_figure(frames, running, layer)
    return None if figure is None else json_of(figure)


def layer_names(run: Run, count: int) -> Sequence[str]:
    """Names of the `count` BatchNorm layers of the run's network; numbers where they are not known."""
    # torch takes seconds to import, and the server does without it: only a run of an earlier version does not say what its layers are
    names = state.store().result(run.id, "layers") or _layer_names(run.config.generation.model)
    return names if len(names) == count else [f"layer {index + 1}" for index in range(count)]


@cache
def _layer_names(model: str) -> Sequence[str]:
    from core.models.full_precision import batch_norm_names_of

    try:
        return batch_norm_names_of(model)
    except CoreError:
        return []
