"""Classes that a quantized network loses, and images on which it disagrees with full precision. Reads the store only."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core import layout
from core.comparison.confusion import ClassChange, Confusion
from core.evaluation.answers import ANSWERS, DISAGREEMENTS
from core.generation.methods import method_order
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts import confusion as charts
from dashboard.charts.style import json_of
from dashboard.components import elements, figures
from dashboard.images import disagreements
from dashboard.names import method_name

MOST_CLASSES = 30  # of the matrix


@st.fragment
def confusion(run: Run) -> None:
    """Charts and images for one network of the run. Nothing is read before the expander was opened. A fragment."""
    names = [name.split("/")[1:] for name in session.store().result_names(run.id) if name.startswith(f"{ANSWERS}/")]
    names.sort(key=lambda pair: (method_order(pair[0]), pair))
    if not names:
        return
    with elements.folded("Classes and images that change", f"confusion/{run.id}", False, ":material/difference:") as opened:
        if opened:
            method, width = st.selectbox(
                "Network", names, format_func=lambda pair: f"{method_name(pair[0])} {pair[1]}", key=f"confusion/{run.id}/network"
            )
            _network(run, method, width)


def _network(run: Run, method: str, width: str) -> None:
    store = session.store()
    kept = (store.result(run.id, f"accuracy/{method}/{width}") or {}).get("kept") or "trained"
    key = ("confusion", run.id, run.attempt, method, width)
    found = session.shared_cache(key, lambda: Confusion.of(store.result(run.id, f"{ANSWERS}/{method}/{width}") or {}, kept))
    if found is None:
        st.caption("This network was not compared with full precision on any images.")
        return
    names = session.class_names(run, [*found.labels, *found.full_precision.classes, *found.quantized.classes])
    changes = session.shared_cache((*key, "changes"), found.changes)
    st.markdown(_summary(found, changes, names))
    left, right = st.columns(2)
    with left:
        drawn = session.shared_cache((*key, "bars"), lambda: json_of(charts.changes_figure(changes, names, method)))
        figures.show(drawn, f"changes/{method}/{width}", f"{run.name} {method} {width} classes")
    classes = sorted({*found.labels.tolist(), *found.quantized.classes.tolist()})
    if len(classes) <= MOST_CLASSES:
        with right:
            drawn = session.shared_cache(
                (*key, "matrix"), lambda: json_of(charts.matrix_figure(found.matrix_change(classes), classes, names))
            )
            figures.show(drawn, f"matrix/{method}/{width}", f"{run.name} {method} {width} confusion")
    pictures = disagreements.read(store.run_folder(run.id) / layout.QUANTIZED / method / width / DISAGREEMENTS, found)
    if pictures is not None:
        shown = f"{len(pictures.positions)} of {found.disagreements:,}"
        st.caption(f"{shown} images to which the networks give other classes, first those of which both are the most certain.")
        st.html(disagreements.html(pictures, found, names, width))


def _summary(found: Confusion, changes: Sequence[ClassChange], names: Sequence[str]) -> str:
    """How often the networks disagree, and which classes change measurably."""
    count = len(found.labels)
    text_of = lambda one: f"{text.plain(names[one.label])} ({one.lost} lost, {one.gained} gained of {one.images})"  # noqa: E731
    lines = [f"The networks give other classes to {found.disagreements:,} of {count:,} images."]
    if not found.labeled:
        return f"{lines[0]} They have no labels: classes are those of full precision."
    for word, chosen in (
        ("lose", [one for one in changes if one.is_measurable and one.lost > one.gained]),
        ("gain", [one for one in changes if one.is_measurable and one.gained > one.lost]),
    ):
        if chosen:
            lines.append(f"Classes that {word} measurably: {', '.join(map(text_of, chosen))}.")
    if len(lines) == 1:
        lines.append("No class changes measurably (McNemar with Holm's correction).")
    return " ".join(lines)
