"""What a finished run achieved, in words, with its networks by width, and buttons for what may follow. Reads the store only."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from core.export import headline
from core.export.headline import MadeNetwork
from core.models.registry import NETWORK_SUFFIXES
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts import files as chart_files
from dashboard.components import tables
from dashboard.downloads import artifacts
from dashboard.forms import new_run, next_runs
from dashboard.names import method_name

_LIMIT = "largest drop"  # in the session, for all runs and pages


def draw(run: Run) -> None:
    """Headline, download, what may follow, and, where the run has several networks, the limit that the recommendation keeps to and a table
    of all. Nothing without a network.
    """
    networks = headline.made_networks(session.store().results_of([run.id], ["accuracy"]).get(run.id, {}))
    if not networks:
        return
    with st.container(border=True, key=f"headline {run.id}"):
        limit = st.session_state.setdefault(_LIMIT, headline.LIMIT)
        made = headline.recommended(networks, limit)
        st.markdown(f"**{text.plain(headline.headline(made, headline.subject(run.config.model)))}.**")
        reason = headline.choice(networks, limit)
        if reason:
            st.caption(text.plain(f"{made.width}, images by {method_name(made.method)}. {reason}"))
        if sentence := headline.reservation(made):
            st.caption(text.plain(sentence))
        with st.container(horizontal=True, vertical_alignment="bottom"):
            _download(run, made)
            if reason:
                _choose_limit(run, limit)
            if len(networks) > 1:
                with st.popover(f"All {len(networks)} networks", icon=":material/table_rows:", width="content"):
                    tables.table([_row(network, network is made) for network in networks], f"networks {run.id}", all_rows=True)
            _next_runs(run)


def _next_runs(run: Run) -> None:
    """A button for each change of the settings that the run leaves."""
    if run.error:
        return  # its settings cannot be read
    for name, following in next_runs.NEXT_RUNS.items():
        if following.settings(run) is not None:
            help = f"{following.help} Opens the form, filled in."
            if st.button(following.label, icon=following.icon, key=f"next {name} {run.id}", help=help):
                new_run.start_again(run, name)


def _row(network: MadeNetwork, is_recommended: bool) -> dict[str, Any]:
    """A network in the table."""
    how, drop = network.drop or ("", None)
    error = network.outcome.get("drop_error") if how == headline.MEASURED else None
    return {
        "network": f"{network.width}{' (recommended)' if is_recommended else ''}",
        "images by": method_name(network.method),
        "size": None if network.size is None else headline.size_in_words(network.size),
        "top-1 %": None if network.outcome.get("quantized") is None else f"{network.outcome['quantized']:.2f}",
        "drop (points)": None if drop is None else f"{drop:.2f}" + (f" ± {error:.2f}" if error else ""),
        "drop is": how,
        "same answer on unseen images %": None if network.agreement is None else f"{network.agreement:.1f}",
    }


def _download(run: Run, made: MadeNetwork) -> None:
    store = session.store()
    folder = store.run_folder(run.id)
    offer = artifacts.network_offer(run, folder, made.method, made.bits)
    if offer is None:
        return
    st.download_button(
        "Download as ONNX",
        partial(artifacts.content, store.folder, run.id, offer, "onnxruntime", folder),  # written when the button is pressed
        file_name=f"{chart_files.file_name(_stem(run.network))}-{made.bits}bit.onnx",
        mime="application/octet-stream",
        on_click="ignore",
        type="primary",
        icon=":material/download:",
        key=f"download {run.id}",
        help="The first time, the file is written and compared with the network, which takes seconds to minutes. It also has the graph, "
        "and whole bytes above 4 bits, so it is larger than the packed size above. Other formats, and the reason if it fails: on Export.",
    )


def _stem(network: str) -> str:
    """The name of a network without the ending of its file; other dots are part of a name, as in timm:vgg11.tv_in1k."""
    path = Path(network)
    return path.stem if path.suffix.lower() in (*NETWORK_SUFFIXES, ".pt", ".pth") else network


def _choose_limit(run: Run, limit: float) -> None:
    key = f"largest drop {run.id}"

    def keep() -> None:
        st.session_state[_LIMIT] = st.session_state[key]

    st.number_input(
        "Largest drop (points)",
        min_value=0.0,
        max_value=100.0,
        value=limit,
        step=0.5,
        format="%g",
        width=180,
        key=key,
        on_change=keep,
        help="The smallest network whose drop in top-1 stays within this limit is recommended: measured with evaluation images, else "
        "predicted; where there is no prediction, the share of changed answers counts, which is usually larger.",
    )
