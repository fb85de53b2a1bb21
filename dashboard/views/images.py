"""The images of all methods at one iteration, and one enlarged image with its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

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
                    draw_sheet(values[key], alt, key, method)


def draw_sheet(values: Mapping[str, Any], alt: str, key: str, method: str, beside: str = "") -> None:
    """A contact sheet whose images can be enlarged by a click. beside: as in session.Enlarged."""
    chosen = session.image_in(st.query_params.to_dict())
    index = chosen.number if chosen is not None and (chosen.method, chosen.beside) == (method, beside) else None
    elements.sheet(values, alt, index, key, partial(_picked, method, beside))


def _picked(method: str, beside: str, index: int) -> None:
    """Enlarges the image that was clicked, or closes it if it is enlarged."""
    picked = session.Enlarged(method, index, beside)
    session.show_image(None if session.image_in(st.query_params.to_dict()) == picked else picked)


class Pictured(NamedTuple):
    """The images of a method at the shown iteration, and those before and after. kept: step -> the run that has its images: a branch has
    those of its run up to where it leaves it.
    """

    label: str
    method: str
    frame: Frame
    kept: Mapping[int, Run]


def draw_large(run: Run, shown: ShownIteration) -> None:
    """The enlarged image that the address names, if it is one of those of the run itself, and its history with every method."""
    image = session.image_in(st.query_params.to_dict())
    if image is None or image.beside:
        return
    kept = dict.fromkeys(shown.history.kept, run)
    draw_enlarged(run, image, [Pictured(method_name(method), method, frame, kept) for method, frame in shown.frames.items()])


def draw_enlarged(run: Run, image: session.Enlarged, rows: Sequence[Pictured], own: Pictured | None = None) -> None:
    """An enlarged image, and its history in each of the rows. own: the row that it is in; default: that of its method."""
    own = own or next((row for row in rows if row.method == image.method), None)
    if own is None or not 0 <= image.number < len(own.frame.labels):
        last = len(rows[0].frame.labels) - 1
        known = ", ".join(dict.fromkeys(row.method for row in rows))
        st.warning(text.plain(f"image in the address must be 0 to {last} of {known}, got {image.number} of {image.method}"))
        return
    frame, index = own.frame, image.number
    with st.container(border=True, key="large view"):
        left, right = st.columns([1, 4])
        with left:
            st.html(contact_sheet.large_html(frame, index, f"image {index} by {own.label}"))
            lines = contact_sheet.describe_image(frame, index, names_for(run, frame)).split("\n")
            st.markdown(f"**{text.plain(own.label)}, image {index}: {text.plain(lines[0])}**")
            st.caption(text.plain(lines[1] if len(lines) > 1 else "This run did not record the teacher's predictions."))
            st.button("Close", icon=":material/close:", key="close image", on_click=session.show_image, args=(None,))
        with right:
            for row in rows:
                if index < len(row.frame.labels):
                    st.markdown(f"{text.plain(row.label)} :small[:gray[iteration and confidence of the teacher]]")
                    steps = iterations.history(row.frame.step, list(row.kept), run.config.generation.iterations)
                    key = ("strip", run.id, run.attempt, row.label, row.method, index, tuple(steps), row.frame.step, *_versions(row.kept))
                    st.html(session.shared_cache(key, partial(_strip, run, row, index, steps)))


def _versions(kept: Mapping[int, Run]) -> list[tuple[str, int]]:
    """Which runs the images are of, and which attempt of each."""
    return list(dict.fromkeys((of.id, of.attempt) for of in kept.values()))


def _strip(run: Run, row: Pictured, index: int, steps: Sequence[int]) -> str:
    per_batch, now = run.config.generation.iterations, row.frame
    read = [
        contact_sheet.single_image(now, index)
        if step == now.step
        else _one_image(row.kept[step].id, row.kept[step].attempt, row.method, step, index)
        for step in steps
    ]
    frames = [frame for frame in read if frame is not None]
    titles = [str((frame.step - 1) % per_batch + 1) for frame in frames]
    return contact_sheet.strip_html(frames, titles, names_for(run, *frames), now.step)


@lru_cache(maxsize=500)  # 3 kB each; a strip is redrawn in every iteration, in which only one of its images is new
def _one_image(run_id: str, attempt: int, method: str, step: int, index: int) -> Frame | None:
    frame = session.store().frames.read(run_id, method, step)
    return contact_sheet.single_image(frame, index) if frame is not None and index < len(frame.labels) else None
