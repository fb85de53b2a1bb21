"""The pages, in the order of the navigation bar. The router, addresses, the update socket, "Open in" and the tests read this list.

To add a page: a file here and a row in PAGES. A page that follows a run also names its View (dashboard/updates/live_view.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """A page of the dashboard.

    name: its address, and its file in this folder. title, icon: in the navigation bar. views: as "module:VIEW", what on it follows a run.
    run_parameters: those of its address that belong to one run, and are dropped when another run is shown. opens_runs: offered under Runs
    as "Open in ..."; needs_generation: only for runs that made their images. script: in place of the file, as an extension has it.
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
        """Its file, from the root of the checkout, as `st.switch_page` takes it."""
        return f"dashboard/pages/{self.name}.py"


STATUS_VIEW = "dashboard.views.status:STATUS"
PAGES: list[Page] = [
    Page(
        "studio",
        "Studio",
        ":material/blur_on:",
        views=("dashboard.views.generation:GENERATION", STATUS_VIEW),
        run_parameters=("at", "method", "image"),
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
    Page("paper", "Paper", ":material/table_chart:"),
    Page("export", "Export", ":material/file_export:", views=(STATUS_VIEW,)),
    Page("compare", "Compare", ":material/compare_arrows:"),
    Page("runs", "Runs", ":material/list_alt:", views=(STATUS_VIEW,)),
]
