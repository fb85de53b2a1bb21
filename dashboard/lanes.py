"""The generation of a run on the page: both lanes with their images, live sliders, curves. Reads the store only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import streamlit as st

from core.config import LIVE_KNOBS
from core.errors import CoreError
from core.runs.store import Record, Run
from dashboard import charts, forms, images, live, state, text
from dashboard.chart_style import lane_name


def generation_finished(run: Run) -> bool:
    """Whether all images are made, so that pictures and curves of the generation stay as they are."""
    return run.state.is_finished() or (
        run.stage != "generation" and state.store().result(run.id, f"generation/{run.config.optimizers[-1]}") is not None
    )


def live_values(run: Run) -> dict[str, float]:
    """The knobs as they stand: those of the config, with what was changed since."""
    values = {name: getattr(run.config.generation, name) for name in LIVE_KNOBS}
    for change in state.store().changes(run.id):
        values[change["name"]] = change["value"]
    return values


def turn(run: Run) -> None:
    """Sliders that act on the next iteration of the run."""
    st.caption("These act on the next iteration of the running job; every change is marked on the curves.")
    forms.live_sliders(live_values(run), f"live/{run.id}", lambda name, key: _turned(run, name, key))


def _turned(run: Run, name: str, key: str) -> None:
    lanes = {"epsilon": ["mi-fgsm"], "mu": ["mi-fgsm"], "lr": ["adam"]}.get(name, list(run.config.optimizers))
    try:
        state.manager().control(run.id).set(name, st.session_state[key], lanes)
    except CoreError as error:
        st.toast(text.error(error), icon=":material/error:")


def pictures(run: Run) -> None:
    """The images of each optimizer side by side, at the same iteration."""
    optimizers = list(run.config.optimizers)
    kept = [state.store().frame_steps(run.id, lane) for lane in optimizers]
    common = sorted(set.intersection(*map(set, kept))) if kept and all(kept) else []
    step = None
    if run.state.is_finished() and len(common) > 1:
        step = st.select_slider("Iteration", common, value=common[-1], key=f"frame/{run.id}", help="The iterations whose images were kept.")
    places = st.columns(len(optimizers))
    for place, lane in zip(places, optimizers):
        with place:
            st.markdown(f"**{text.plain(lane_name(lane))}**")
            version = state.store().frame_version(run.id, lane, step)
            drawn = state.kept(("frame", run.id, lane, step, version), partial(_frame, run, lane, step))
            if drawn is None:
                st.caption("Images appear here with the first iteration.")
                continue
            at, sheet, record = drawn
            per_batch = run.config.generation.iterations
            batches = len(run.config.generation.batches)
            caption = f"batch {(at - 1) // per_batch + 1} of {batches}, iteration {(at - 1) % per_batch + 1} of {per_batch}"
            if record is not None:
                caption += f" · L_BNS {record.data['bns']:.1f} · teacher agrees on {record.data['agreement']:.0f} %"
            st.caption(caption)
            st.html(sheet)


def _frame(run: Run, lane: str, step: int | None) -> tuple[int, str, Record | None] | None:
    """Step, contact sheet and record of the latest or a kept moment."""
    frame = state.store().frame(run.id, lane, step)
    if frame is None:
        return None
    names = live.classes(run.config.generation.model, frame.labels)
    sheet = images.sheet_html(frame.images, frame.labels, names, f"synthetic images by {lane_name(lane)}")
    record = next((r for r in reversed(state.records(run, "generation")) if r.lane == lane and r.step == frame.step), None)
    return frame.step, sheet, record


def losses(run: Run) -> None:
    """Curves of the loss and its parts, and L_BNS by layer."""
    records = state.records(run, "generation")
    if not records:
        st.caption("Loss curves appear here with the first iteration.")
        return
    left, right = st.columns(2)
    with left:
        part = st.selectbox(
            "Curve",
            list(charts.PARTS),
            format_func=lambda name: charts.PARTS[name],
            key="part",
            help="Each tooth is a batch that starts from new noise.",
        )
        live.chart(
            run,
            records,
            ("loss", part),
            lambda: charts.loss_figure(records, part, state.store().changes(run.id)),
            "loss chart",
        )
    names = layer_names(run, len(records[0].data["layers"]))
    with right:
        layer = st.selectbox("Layer", names, format_func=lambda name: f"{names.index(name) + 1}: {name}", key="layer")
        live.chart(run, records, ("layer", layer), lambda: charts.layer_figure(records, names, layer), "layer chart")
    for place, lane in zip(st.columns(len(run.config.optimizers)), run.config.optimizers):
        with place:
            live.chart(
                run,
                records,
                ("heatmap", lane),
                partial(_heatmap, records, lane, names),
                f"heatmap {lane}",
            )


def _heatmap(records: list[Record], lane: str, names: Sequence[str]) -> Any:
    return charts.layer_heatmap(records, lane, names, charts.heatmap_ends(records))


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
