"""The list of pages, in the order of the navigation bar. The router, the addresses, the update socket, "Open in" and the tests read it.

To add a page: a file in this folder and a row in PAGES. If it follows a run, the row names its View (dashboard/updates/live_view.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """A page of the dashboard.

    name: its path in the address and its file in this folder. title, icon: in the navigation bar. views: the views on it that follow a run,
    as "module:VIEW". run_parameters: parameters of its address that belong to one run; they are dropped when another run is shown.
    opens_runs: whether Runs offers "Open in ..."; needs_generation: only for runs that generated their images. script: called instead of
    running the file, for pages that are defined elsewhere.
    """

    name: str
    title: str
    icon: str
    views: tuple[str, ...] = ()
    run_parameters: tuple[str, ...] = ()
    opens_runs: bool = False
    needs_generation: bool = False
    script: Callable[[], None] | None = None

    @property
    def path(self) -> str:
        """Its file, relative to the repository root, as `st.switch_page` expects it."""
        return f"dashboard/pages/{self.name}.py"


STATUS_VIEW = "dashboard.views.status:STATUS"
PAGES: list[Page] = [
    Page(
        "studio",
        "Studio",
        ":material/blur_on:",
        views=("dashboard.views.generation:GENERATION", "dashboard.views.generation:GENERATION_STATUS"),
        run_parameters=("at", "method", "image", "beside"),
        opens_runs=True,
        needs_generation=True,
    ),
    Page("quantize", "Quantize", ":material/compress:", views=("dashboard.views.training:TRAINING",), opens_runs=True),
    Page(
        "diversity",
        "Diversity",
        ":material/scatter_plot:",
        views=("dashboard.views.diversity:DIVERSITY",),
        run_parameters=("neighbors",),
        opens_runs=True,
    ),
    Page("methods", "Methods", ":material/balance:"),
    Page("sweep", "Sweep", ":material/grid_on:"),
    Page("paper", "Paper", ":material/table_chart:"),
    Page("export", "Export", ":material/file_export:", views=(STATUS_VIEW,)),
    Page("compare", "Compare", ":material/compare_arrows:"),
    Page("runs", "Runs", ":material/list_alt:", views=(STATUS_VIEW,)),
]
