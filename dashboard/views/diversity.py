"""The diversity of a run on the page: figures, similarities and nearest neighbours. Reads the store only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from core import layout
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts import diversity as diversity_charts
from dashboard.charts.style import json_of
from dashboard.components import figures
from dashboard.images import contact_sheet, rows
from dashboard.names import class_names, method_name
from dashboard.tables import results
from dashboard.updates.live_view import LAYOUT, Values, View
from dashboard.views import status

IMAGE_PARAMETER = "neighbors"  # the image whose nearest neighbors are shown
_KINDS = ("diversity/", "reference/")  # of results


def values(run: Run, address: Mapping[str, str]) -> Values:
    """Progress; everything else is drawn again when a result is new."""
    measured = [name for name in session.store().result_names(run.id) if name.startswith(_KINDS)]
    return {LAYOUT: measured, **status.values(run, address)}


def draw(run: Run, values: Values) -> None:
    """Status, figures and pictures."""
    status.draw(run, values)
    similarity(run)
    pictures(run)


DIVERSITY = View("diversity", values, draw)


def similarity(run: Run) -> None:
    """What is known so far: means, histogram and matrices, with references where the run measured them."""
    known = session.store().results(run.id)
    measured, references = results.diversities(known), results.references(known)
    if not measured:
        st.caption(_nothing(run))
        return
    any_set = next(iter(measured.values()))
    st.markdown(
        f"Encoder **{text.plain(any_set['encoder'])}**, trained on {text.plain(any_set['encoder_trained_on'])}. "
        "It decides what counts as alike, so figures of two encoders cannot be compared."
    )
    sets = {**measured, **references}
    with st.container(horizontal=True):
        for name, of_set in sets.items():
            st.metric(text.plain(method_name(name)), f"{of_set['mean_similarity']:.3f}", border=True)
    st.caption(
        "Mean cosine similarity over all pairs of images, from -1 to 1: lower is more diverse." + _references_said(known, references)
    )
    figures.show(json_of(diversity_charts.histogram_figure(measured, references)), "histogram", f"{run.name} similarities")
    st.caption("All pairs of images by their similarity: the further left, the more diverse. Dashed and dotted lines are the means.")
    figures.table(
        results.diversity_table(measured, references),
        "diversity table",
        column_config={
            column: st.column_config.NumberColumn(format="%.1f" if "%" in column else "%.3f", help=help_text)
            for column, help_text in results.DIVERSITY_COLUMNS.items()
        },
    )
    low = min(value for of_set in measured.values() for row in of_set["matrix"]["cosine"] for value in row)
    for place, (method, of_set) in zip(st.columns(len(measured)), measured.items()):
        classes = class_names(run.config.model, of_set["matrix"]["labels"])
        with place:
            matrix = diversity_charts.matrix_figure(method, of_set["matrix"], classes, low)
            figures.show(json_of(matrix), f"matrix {method}", f"{run.name} similarity matrix {method}")
    st.caption(
        "Images ordered by class, in the same colours for all: bright blocks on the diagonal are classes whose images look alike, "
        "and darker is more diverse."
    )


def _nothing(run: Run) -> str:
    if not run.config.evaluation.encoder:
        if not session.image_methods(run):
            return "This run did not measure diversity, and the images that it was given are no longer there: upload them below."
        return "This run did not measure diversity: open “Measure with another encoder” below."
    if run.state.is_finished():
        return "This run ended before its diversity was measured: resume it, or start another in the Studio."
    return "Similarities appear here when the images are made."


def _references_said(known: Mapping[str, Any], references: Mapping[str, Any]) -> str:
    """What the references are, or why there are none."""
    said = "".join(f" {method_name(name).capitalize()}: {text.plain(of_set['description'])}." for name, of_set in references.items())
    reasons = [value["left_out"] for name, value in known.items() if name.startswith("reference/") and "left_out" in value]
    said += "".join(f" No real images beside them: {text.plain(reason)}." for reason in reasons)
    if not said:
        return " This run has no noise and real images beside them: measure it again below."
    return said


def pictures(run: Run) -> None:
    """The most alike images of each optimizer, one image with its nearest, and some images of each class."""
    measured = results.diversities(session.store().results(run.id))
    if not measured:
        return
    found = {method: of_set["neighbours"] for method, of_set in measured.items() if of_set.get("neighbours")}
    if found:
        _neighbours(run, found, measured)
    sheets = {method: sheet for method in measured if (sheet := session.sheet(run, method)) is not None}
    if not sheets:
        return
    st.header("Images", divider=False)
    for place, method in zip(st.columns(len(measured)), measured):
        if method in sheets:
            classes = class_names(run.config.model, sheets[method][1])
            place.markdown(f"**{text.plain(method_name(method))}**")
            place.html(contact_sheet.sheet_html(*sheets[method], classes, f"images by {method_name(method)}", rows=8))


def _neighbours(run: Run, found: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    st.header("Nearest neighbours", divider=False)
    apart = any(measured[method]["snapshot_similarity"] is not None for method in found)
    st.caption(
        "Of the images of one optimizer, those most alike in this encoder: a diverse set has no two that show nearly the same."
        + (" Snapshots of one noise image, which are always alike, count as one image." if apart else "")
    )
    files = {method: _set_file(run, method) for method in found}
    missing = [method for method, file in files.items() if not file.is_file()]
    if missing:
        st.caption(
            f"No pictures of {text.plain(', '.join(map(method_name, missing)))}: they were given as files of another kind than this "
            "program's own, or are gone."
        )
    st.markdown("**Most alike**")
    for place, (method, near) in zip(st.columns(len(found)), found.items()):
        with place:
            st.markdown(text.plain(method_name(method)))
            for row in _rows(near["pairs"], 4):
                _draw_pairs(files[method], row, method)
    st.markdown("**One image and the five nearest**")
    number = _chosen_image(run, next(iter(found.values()))["images"])
    for place, (method, near) in zip(st.columns(len(found)), found.items()):
        if number in near["images"]:
            with place:
                st.markdown(text.plain(method_name(method)))
                _draw_nearest(run, files[method], near, number, method)


def _chosen_image(run: Run, numbers: list[int]) -> int:
    """The image whose neighbours are shown, also in the address."""
    asked = st.query_params.get(IMAGE_PARAMETER, "")
    start = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 10 else numbers[0]
    number = st.select_slider(
        "Image number",
        numbers,
        value=min(numbers, key=lambda one: abs(one - start)),
        key=f"neighbours of/{run.id}",
        help="Both optimizers start from the same noise: the image with one number began as the same noise in both, with the same class.",
    )
    if number != numbers[0] or asked:
        st.query_params[IMAGE_PARAMETER] = str(number)
    return number


def _set_file(run: Run, method: str) -> Path:
    """The file with the images of a method, made by the run or given to it."""
    folder = session.store().images_folder(run)
    if run.config.images_from:
        return layout.user_image_sets(folder, run.config.methods).get(method, folder / method) / layout.IMAGES_FILE
    return folder / method / layout.IMAGES_FILE


def _rows(items: list, length: int) -> list[list]:
    """Only full rows, as a row is as wide as its column whatever is in it; all in one where there are fewer."""
    return [items[start : start + length] for start in range(0, max(1, len(items) - length + 1), length)] if items else []


def _draw_pairs(file: Path, pairs: list, method: str) -> None:
    read = rows.read_images(file, [int(number) for one, other, _ in pairs for number in (one, other)])
    if read is not None:
        groups = [read[0][start : start + 2] for start in range(0, len(read[0]), 2)]
        captions = [f"{cosine:.3f}" for *_, cosine in pairs]
        st.html(rows.row_html(groups, captions, f"pairs of images by {method_name(method)} that are most alike"))


def _draw_nearest(run: Run, file: Path, near: Mapping[str, Any], number: int, method: str) -> None:
    place = near["images"].index(number)
    read = rows.read_images(file, [number, *near["nearest"][place]])
    if read is None:
        return
    pixels, labels = read
    classes = class_names(run.config.model, labels)
    captions = [classes[labels[0]], *(f"{cosine:.3f} {classes[label]}" for cosine, label in zip(near["cosine"][place], labels[1:]))]
    alt = f"image {number} by {method_name(method)}, and the images nearest to it"
    st.html(rows.row_html([pixels[start : start + 1] for start in range(len(pixels))], captions, alt))
