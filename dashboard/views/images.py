"""The images of all methods at one iteration, and one of them large with its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import streamlit as st

from core.reporting import Frame
from core.runs.run import Run
from dashboard import session, text
from dashboard.components import elements
from dashboard.images import contact_sheet
from dashboard.names import method_name
from dashboard.tables import iterations
from dashboard.updates.live_view import Values
from dashboard.views.generation_data import ShownIteration, names_for

_IN_A_ROW = 4  # methods beside each other, at most


def sheet_values(run: Run, shown: ShownIteration) -> Values:
    """Heading and contact sheet of every method."""
    values: Values = {}
    for method in shown.frames:
        summary = iterations.summary(shown.frames[method], shown.records.get(method))
        lines = [f"{shown.label} · {summary}".rstrip(" ·")]
        values[f"heading/{run.id}/{method}"] = elements.text_block_data(lines, method_name(method))
        values[_sheet_key(run, method)] = vars(_sheet(run, shown, method))
    return values


def _sheet_key(run: Run, method: str) -> str:
    return f"sheet/{run.id}/{method}"


def _sheet(run: Run, shown: ShownIteration, method: str) -> contact_sheet.Sheet:
    frame = shown.frames[method]
    key = ("sheet", run.id, run.attempt, method, frame.step)
    return session.shared_cache(key, lambda: contact_sheet.sheet(frame, names_for(run.config.model, frame)))


def draw_sheets(run: Run, values: Values) -> None:
    """The contact sheets beside each other, a row for every four methods."""
    chosen, index = session.image_in(st.query_params.to_dict())
    methods = [method for method in run.config.methods if _sheet_key(run, method) in values]
    width = min(len(methods), _IN_A_ROW)
    for start in range(0, len(methods), width):
        for cell, method in zip(st.columns(width), methods[start : start + width]):
            with cell:
                elements.text_block(f"heading/{run.id}/{method}", values[f"heading/{run.id}/{method}"], clipped=True)
                key = _sheet_key(run, method)
                alt = f"synthetic images by {method_name(method)}"
                elements.sheet(values[key], alt, index if method == chosen else None, key, partial(_picked, method))


def _picked(method: str, index: int) -> None:
    """Opens the large view of the image that was clicked, or closes it where it is open."""
    session.show_image(None if session.image_in(st.query_params.to_dict()) == (method, index) else (method, index))


def draw_large(run: Run, shown: ShownIteration) -> None:
    """The image in the address, large, with its history in every method: all started from the same noise."""
    frames, kept = shown.frames, shown.history.kept
    method, index = session.image_in(st.query_params.to_dict())
    if method is None:
        st.caption(
            "Hover over an image for its label and the teacher's prediction (white corner: they differ); click to enlarge and to see its "
            "history."
        )
        return
    if method not in frames or not 0 <= index < len(frames[method].labels):
        last = len(next(iter(frames.values())).labels) - 1
        st.warning(text.plain(f"image in the address must be 0 to {last} of {', '.join(frames)}, got image {index} of {method}"))
        return
    frame, model = frames[method], run.config.model
    names = names_for(model, frame)
    steps = iterations.history(frame.step, kept, run.config.generation.iterations)
    with st.container(border=True, key="large view"):
        left, right = st.columns([1, 4])
        with left:
            st.html(contact_sheet.large_html(frame, index, f"image {index} by {method_name(method)}"))
            lines = contact_sheet.describe_image(frame, index, names).split("\n")
            st.markdown(f"**{text.plain(method_name(method))}, image {index}: {text.plain(lines[0])}**")
            st.caption(text.plain(lines[1] if len(lines) > 1 else "This run did not record the teacher's predictions."))
            st.button("Close", icon=":material/close:", key="close image", on_click=session.show_image, args=(None,))
        with right:
            for own in frames:
                st.markdown(f"{text.plain(method_name(own))} :small[:gray[iteration, and the teacher's confidence]]")
                key = ("strip", run.id, run.attempt, own, index, tuple(steps), frame.step)
                st.html(session.shared_cache(key, partial(_strip, run, own, index, steps, frames[own], model)))


def _strip(run: Run, method: str, index: int, steps: Sequence[int], now: Frame, model: str) -> str:
    per_batch = run.config.generation.iterations
    known = []
    for step in steps:
        known.append(contact_sheet.single_image(now, index) if step == now.step else _one_image(run.id, run.attempt, method, step, index))
    frames = [frame for frame in known if frame is not None]
    titles = [str((frame.step - 1) % per_batch + 1) for frame in frames]
    return contact_sheet.strip_html(frames, titles, names_for(model, *frames), now.step)


@lru_cache(maxsize=500)  # of 3 kB each: a strip is drawn again with each iteration, and only one image of it is new
def _one_image(run_id: str, attempt: int, method: str, step: int, index: int) -> Frame | None:
    frame = session.store().frames.read(run_id, method, step)
    return contact_sheet.single_image(frame, index) if frame is not None and index < len(frame.labels) else None


def is_enlarged(address: Mapping[str, str]) -> bool:
    """Whether an address shows an image large."""
    return session.image_in(address)[0] is not None
