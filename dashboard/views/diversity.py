"""Diversity of a run: similarities, nearest neighbors and images. Reads the store only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from core import layout
from core.data.some_images import SomeImages
from core.export.commands import bare_name
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts import diversity as diversity_charts
from dashboard.charts.style import json_of
from dashboard.components import elements, figures, tables
from dashboard.images import contact_sheet, rows
from dashboard.names import method_name
from dashboard.tables import results
from dashboard.tables.columns import Column
from dashboard.updates.live_view import LAYOUT, Values, View
from dashboard.views import status, verdict

IMAGE_PARAMETER = "neighbors"  # the image whose nearest neighbors are shown
_RESULTS = ("diversity/", "reference/")  # prefixes of names
_NEIGHBORS_IN_A_ROW, _MATRICES_IN_A_ROW, _SHEETS_IN_A_ROW = 2, 3, 4  # methods side by side, at most


def values(run: Run, address: Mapping[str, str]) -> Values:
    """Progress; new results redraw everything else."""
    measured = [name for name in session.store().result_names(run.id) if name.startswith(_RESULTS)]
    return {LAYOUT: measured, **status.values(run, address)}


def draw(run: Run, values: Values) -> None:
    """Status, similarities and images."""
    status.draw(run, values)
    similarity(run)
    images(run)


DIVERSITY = View("diversity", values, draw)


def similarity(run: Run) -> None:
    """Means, histogram and matrices of the sets measured so far, with references if the run measured them."""
    known = session.store().results(run.id)
    measured, references = results.diversities(known), results.references(known)
    if not measured:
        st.caption(_nothing(run))
        return
    any_set = next(iter(measured.values()))
    st.markdown(
        f"Encoder **{text.plain(bare_name(any_set['encoder']))}**, trained on {text.plain(any_set['encoder_trained_on'])}. "
        "Similarities by different encoders cannot be compared."
    )
    sets = {**measured, **references}
    verdict.draw_diversity(run)
    with st.container(horizontal=True, key="metrics of diversity"):
        for name, of_set in sets.items():
            st.metric(text.plain(method_name(name)), f"{of_set['mean_similarity']:.3f}", border=True)
    st.caption(
        "Mean cosine similarity over all pairs of images, from -1 to 1: lower is more diverse." + _about_references(known, references)
    )
    figures.show(json_of(diversity_charts.histogram_figure(measured, references)), "histogram", f"{run.name} similarities")
    st.caption("Distribution over all pairs of images: further left is more diverse. Dashed and dotted lines mark the means.")
    tables.table(
        results.diversity_table(measured, references),
        "diversity",
        {
            column: Column(results.DIVERSITY_TITLES.get(column, column), digits=1 if "%" in column else 3, help=help_text)
            for column, help_text in results.DIVERSITY_COLUMNS.items()
        },
        alt="Diversity of each set of images",
    )
    low = min(value for of_set in measured.values() for row in of_set["matrix"]["cosine"] for value in row)
    for cell, (method, of_set) in elements.grid(list(measured.items()), _MATRICES_IN_A_ROW):
        classes = session.class_names(run, of_set["matrix"]["labels"])
        with cell:
            matrix = diversity_charts.matrix_figure(method, of_set["matrix"], classes, low)
            figures.show(json_of(matrix), f"matrix {method}", f"{run.name} similarity matrix {method}")
    st.caption(
        "Images ordered by class, on the same color scale. Bright blocks on the diagonal are classes whose images are similar; darker is "
        "more diverse."
    )


def _nothing(run: Run) -> str:
    if not run.config.evaluation.encoder:
        if not session.image_methods(run):
            return "This run did not measure diversity, and its images no longer exist. Upload them below."
        return "This run did not measure diversity. Open “Measure with an encoder” below."
    if run.state.is_finished():
        return "This run ended before its diversity was measured. Resume it, or start another in the Studio."
    return "Similarities appear here after the images are generated."


def _about_references(known: Mapping[str, Any], references: Mapping[str, Any]) -> str:
    """Description of the references, or why there are none."""
    about = "".join(f" {method_name(name).capitalize()}: {text.plain(of_set['description'])}." for name, of_set in references.items())
    reasons = [value["left_out"] for name, value in known.items() if name.startswith("reference/") and "left_out" in value]
    about += "".join(f" No real images for reference: {text.plain(reason)}." for reason in reasons)
    if not about:
        return " This run has no noise or real images for reference. Measure it again below."
    return about


def images(run: Run) -> None:
    """The most similar images of each method, one image with its nearest neighbors, and some images of each class."""
    measured = results.diversities(session.store().results(run.id))
    if not measured:
        return
    found = {method: of_set["neighbours"] for method, of_set in measured.items() if of_set.get("neighbours")}
    if found:
        _neighbors(run, found, measured)
    sheets = {method: sheet for method in measured if (sheet := session.sheet(run, method)) is not None}
    if not sheets:
        return
    st.header("Images", divider=False)
    for cell, method in elements.grid(list(sheets), _SHEETS_IN_A_ROW):
        with cell:
            classes = session.class_names(run, sheets[method][1])
            st.markdown(f"**{text.plain(method_name(method))}**")
            st.html(contact_sheet.sheet_html(*sheets[method], classes, f"images by {method_name(method)}", rows=8))


def _neighbors(run: Run, found: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    st.header("Nearest neighbors", divider=False)
    by_snapshot = any(measured[method]["snapshot_similarity"] is not None for method in found)
    st.caption(
        "The most similar images of one method according to this encoder. In a diverse set, no two images are nearly the same."
        + (" Snapshots of one noise image, which are always similar, count as one image." if by_snapshot else "")
    )
    sets = {method: SomeImages(_set_folder(run, method)) for method in found}
    missing = [method for method, images in sets.items() if not images.total]
    if missing:
        st.caption(
            f"No images to show of {text.plain(', '.join(map(method_name, missing)))}: they were deleted, or this page cannot read their "
            "format."
        )
    st.markdown("**Most similar**")
    for cell, (method, near) in elements.grid(list(found.items()), _NEIGHBORS_IN_A_ROW):
        with cell:
            st.markdown(text.plain(method_name(method)))
            for row in _rows(near["pairs"], 4):
                _draw_pairs(sets[method], row, method)
    st.markdown("**One image and its five nearest neighbors**")
    number = _chosen_image(run, next(iter(found.values()))["images"])
    shown = [(method, near) for method, near in found.items() if number in near["images"]]
    for cell, (method, near) in elements.grid(shown, _NEIGHBORS_IN_A_ROW):
        with cell:
            st.markdown(text.plain(method_name(method)))
            _draw_nearest(run, sets[method], near, number, method)


def _chosen_image(run: Run, numbers: list[int]) -> int:
    """The image whose neighbors are shown, which is in the address."""
    wanted = st.query_params.get(IMAGE_PARAMETER, "")
    start = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 10 else numbers[0]
    number = st.select_slider(
        "Image number",
        numbers,
        value=min(numbers, key=lambda one: abs(one - start)),
        key=f"neighbors of/{run.id}",
        help="Methods that move pixels start from the same noise: there, images with the same number share their noise and label.",
    )
    if number != numbers[0] or wanted:
        session.put_into_address(IMAGE_PARAMETER, number)
    return number


def _set_folder(run: Run, method: str) -> Path:
    """The folder with the images of a method, generated by the run or from the user."""
    folder = session.store().images_folder(run)
    if run.config.images_from:
        return layout.user_image_sets(folder, run.config.methods).get(method, folder / method)
    return folder / method


def _rows(items: list, length: int) -> list[list]:
    """Splits items into full rows and drops the rest, because rows fill their column; one row if there are fewer items."""
    return [items[start : start + length] for start in range(0, max(1, len(items) - length + 1), length)] if items else []


def _draw_pairs(images: SomeImages, pairs: list, method: str) -> None:
    read = images.read([int(number) for one, other, _ in pairs for number in (one, other)])
    if read is not None:
        groups = [read[0][start : start + 2] for start in range(0, len(read[0]), 2)]
        captions = [f"{cosine:.3f}" for *_, cosine in pairs]
        st.html(rows.row_html(groups, captions, f"most similar pairs of images by {method_name(method)}"))


def _draw_nearest(run: Run, images: SomeImages, near: Mapping[str, Any], number: int, method: str) -> None:
    index = near["images"].index(number)
    read = images.read([number, *near["nearest"][index]])
    if read is None:
        return
    pixels, labels = read
    classes = session.class_names(run, labels)
    captions = [classes[labels[0]], *(f"{cosine:.3f} {classes[label]}" for cosine, label in zip(near["cosine"][index], labels[1:]))]
    alt = f"image {number} by {method_name(method)} and its nearest neighbors"
    st.html(rows.row_html([pixels[start : start + 1] for start in range(len(pixels))], captions, alt))
