"""The images of all methods at one iteration, and one enlarged image with its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import streamlit as st

from core.generation.methods import is_reference
from core.reporting import Frame
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts.style import color
from dashboard.components import elements
from dashboard.images import contact_sheet
from dashboard.names import method_name
from dashboard.tables import iterations
from dashboard.updates.live_view import Values
from dashboard.views.generation_data import ShownIteration, names_for

_IN_A_ROW = 5  # methods side by side, at most


def sheet_values(run: Run, shown: ShownIteration) -> Values:
    """Heading and contact sheet of every method."""
    values: Values = {}
    for method in shown.frames:
        summary = iterations.summary(shown.frames[method], shown.records.get(method))
        values[_heading_key(run, method)] = elements.text_block_data([summary], method_name(method))
        values[_sheet_key(run, method)] = vars(_sheet(run, shown, method))
    return values


def _heading_key(run: Run, method: str) -> str:
    return f"heading/{run.id}/{method}"


def _sheet_key(run: Run, method: str) -> str:
    return f"sheet/{run.id}/{method}"


def _sheet(run: Run, shown: ShownIteration, method: str) -> contact_sheet.Sheet:
    frame = shown.frames[method]
    key = ("sheet", run.id, run.attempt, method, frame.step)
    return session.shared_cache(key, lambda: contact_sheet.sheet(frame, names_for(run, frame)))


def draw_sheets(run: Run, values: Values) -> None:
    """The contact sheets side by side; page.css gives them the height that the window leaves."""
    chosen, index = session.image_in(st.query_params.to_dict())
    methods = run.config.methods
    rows = -(-len(methods) // _IN_A_ROW)
    with st.container(key=f"sheets-in-{min(rows, 2)}-rows"):
        for cell, method in elements.grid(methods, -(-len(methods) // rows)):
            key, heading = _sheet_key(run, method), _heading_key(run, method)
            with cell:
                soon = elements.text_block_data([""], method_name(method))
                elements.text_block(heading, values.get(heading, soon), clipped=True, color=color(method))
                if key in values:
                    alt = method_name(method) if is_reference(method) else f"synthetic images by {method_name(method)}"
                    elements.sheet(values[key], alt, index if method == chosen else None, key, partial(_picked, method))


def _picked(method: str, index: int) -> None:
    """Enlarges the image that was clicked, or closes it if it is enlarged."""
    session.show_image(None if session.image_in(st.query_params.to_dict()) == (method, index) else (method, index))


def draw_large(run: Run, shown: ShownIteration) -> None:
    """The enlarged image that the address names, and its history with every method."""
    frames, kept = shown.frames, shown.history.kept
    method, index = session.image_in(st.query_params.to_dict())
    if method is None:
        return
    if method not in frames or not 0 <= index < len(frames[method].labels):
        last = len(next(iter(frames.values())).labels) - 1
        st.warning(text.plain(f"image in the address must be 0 to {last} of {', '.join(frames)}, got {index} of {method}"))
        return
    frame = frames[method]
    names = names_for(run, frame)
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
            for other in frames:
                st.markdown(f"{text.plain(method_name(other))} :small[:gray[iteration and confidence of the teacher]]")
                key = ("strip", run.id, run.attempt, other, index, tuple(steps), frame.step)
                st.html(session.shared_cache(key, partial(_strip, run, other, index, steps, frames[other])))


def _strip(run: Run, method: str, index: int, steps: Sequence[int], now: Frame) -> str:
    per_batch = run.config.generation.iterations
    read = [
        contact_sheet.single_image(now, index) if step == now.step else _one_image(run.id, run.attempt, method, step, index)
        for step in steps
    ]
    frames = [frame for frame in read if frame is not None]
    titles = [str((frame.step - 1) % per_batch + 1) for frame in frames]
    return contact_sheet.strip_html(frames, titles, names_for(run, *frames), now.step)


@lru_cache(maxsize=500)  # 3 kB each; a strip is redrawn in every iteration, in which only one of its images is new
def _one_image(run_id: str, attempt: int, method: str, step: int, index: int) -> Frame | None:
    frame = session.store().frames.read(run_id, method, step)
    return contact_sheet.single_image(frame, index) if frame is not None and index < len(frame.labels) else None


def is_enlarged(address: Mapping[str, str]) -> bool:
    """Whether an address names an image to enlarge."""
    return session.image_in(address)[0] is not None
