"""A sweep: how far it is, its best point, figures and the table of its points. Reads the store only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import streamlit as st

from core.comparison.sweep import Row, Trial, listed, own_knobs, rows
from core.comparison.sweeps import Sweep, complete, distinct, forget, measured, seconds_for_work, trials_of
from core.runs.outlook import duration
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session, text
from dashboard.charts import sweep as charts
from dashboard.charts.style import json_of
from dashboard.components import figures, problems, tables
from dashboard.components.address_widgets import choose_from_box, choose_one
from dashboard.names import knob_symbol, knob_title, method_name
from dashboard.server import rights
from dashboard.tables.columns import Column
from dashboard.updates import live_view, pace

_TABLE = "points"  # its name in the address
_COLUMNS = {
    "agreement": Column("agreement %", "Mean over seeds, on the held-out images.", digits=2),
    "share": Column(help="Of the images and training steps. Points of different shares do not compare."),
    "spread": Column(help="Standard deviation of the agreement between seeds.", digits=2),
    "error": Column(help="Standard error of the mean agreement, from the number of images.", digits=2),
    "KL": Column(help="Mean KL divergence from full precision, in nats.", digits=4),
    "seconds": Column(help="Of a run, mean over seeds.", digits=0),
    "run": Column(kind="link", help="Opens the first of its runs in Quantize."),
}
_EXPLAINED = (
    "Agreement: share of the held-out synthetic images to which the quantized network gives the class of the full-precision one, after the "
    "last training step. All runs are compared on the same images, which none of them was calibrated or trained on. No real image takes "
    "part, so the best point can still be measured on test images."
)


@dataclass(frozen=True)
class State:
    """A sweep as it is now. found: each run that it will have, if it has been started."""

    sweep: Sweep
    found: Sequence[tuple[Trial, Run | None]]

    @property
    def complete(self) -> list[tuple[Trial, str]]:
        """The trials that were measured, each with its run."""
        return complete(self.found)

    @property
    def active(self) -> bool:
        """Whether it is being computed, here or by another process."""
        return session.sweeper().computes(self.sweep.id) or any(run is not None and not run.state.is_finished() for _, run in self.found)

    @property
    def failed(self) -> list[Run]:
        """Runs that failed."""
        return [run for _, run in self.found if run is not None and run.state is RunState.FAILED]


def state_of(sweep: Sweep) -> State:
    """Reads the runs of a sweep."""
    return State(sweep, measured(session.store(), trials_of(session.store(), sweep)))


def follow(sweep: Sweep) -> None:
    """Draws a sweep, and redraws it while it is computed."""
    active = state_of(sweep).active

    def region() -> None:
        state = state_of(sweep)
        if state.active != active:
            st.rerun(scope="app")
        draw(state)

    live_view.refreshed(2 * pace.chart_seconds() if active else None, region)


def draw(state: State) -> None:
    """All of a sweep."""
    _line(state)
    if reason := session.sweeper().error(state.sweep.id):
        st.error(text.plain(reason), icon=":material/error:")
    if state.failed:
        first = state.failed[0]
        st.warning(text.plain(f"{len(state.failed)} of its runs failed. {first.name}: {first.error}"), icon=":material/warning:")
    table = listed(rows(session.store(), state.complete))
    _metrics(state, table)
    if not table:
        st.caption("The first point appears here when its run is complete; until then, see its images in the Studio.")
        return
    widths = {row.width: row.width for row in table}
    with st.container(horizontal=True):
        if len(widths) > 1:
            width = choose_one("Bit width", widths, "width")
            table = [row for row in table if row.width == width]
        share = min(row.share for row in table)
        compared = [row for row in table if row.share == share]
        names = list(compared[0].values)
        right = _of_two_knobs(compared) if len(names) > 1 else _agreement_over(compared, names[0])
    _figures(compared, *right)
    if share < 1:
        st.caption(f"The figures compare all points with {_in_percent(share)} of the images and training steps.")
    _points(table)


def _of_two_knobs(table: Sequence[Row]) -> tuple[charts.Figure, str, str]:
    """Boxes for the method and the two knobs of the heat map; the map, its key and its name. Where no method has two, the agreement over
    the knob that one has.

    table: of one bit width, the best row first, as the methods are offered.
    """
    own = {row.method: own_knobs(row.values, row.method) for row in table}
    most = min(max(map(len, own.values())), 2)
    if not most:
        return _agreement_over(table, next(iter(table[0].values)))
    offered = {method: method_name(method) for method, knobs in own.items() if len(knobs) >= most}
    method = next(iter(offered))
    if len(offered) > 1:
        label, count = ("Heat map: method", "two") if most == 2 else ("Method", "one")
        method = choose_from_box(label, offered, "of", help=f"Those that have {count} of the knobs, the best one first.", width=190)
    titles = {name: knob_title(name) for name in own[method]}
    rows = [row for row in table if row.method == method]
    if most == 1:
        return _agreement_over(rows, *titles)
    across = choose_from_box("Heat map: across", titles, "across", width=230)
    up = choose_from_box("Heat map: up", {name: title for name, title in titles.items() if name != across}, "up", width=230)
    return charts.heat_figure(rows, across, up), "heat map", f"sweep {method} {across} {up}"


def _agreement_over(table: Sequence[Row], name: str) -> tuple[charts.Figure, str, str]:
    """The chart of one knob, its key and its name."""
    return charts.one_knob_figure(table, name), "agreement of values", f"sweep {name}"


def _line(state: State) -> None:
    """Name, state, and the buttons that apply."""
    sweep, here = state.sweep, session.sweeper().computes(state.sweep.id)
    done, of_all = len(state.complete), sweep.of_all
    word, color = ("complete", "green") if done == of_all else ("computing", "blue") if state.active else ("not complete", "orange")
    refusal = text.plain(rights.objection(sweep)) or None
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{text.plain(sweep.name)}**", width="content")
        st.markdown(f":{color}-badge[{word}]", width="content")
        if here:
            st.button(
                "Stop", icon=":material/stop:", key="stop sweep", on_click=_act, args=(sweep, lambda: session.sweeper().stop(sweep.id)),
                disabled=bool(refusal), help=refusal or "Stops its runs. The sweep can be continued.",
            )  # fmt: skip
        elif not state.active:
            if done < of_all:
                st.button(
                    "Continue", icon=":material/play_arrow:", key="continue sweep", type="primary", on_click=_act,
                    args=(sweep, lambda: session.sweeper().start(sweep)), disabled=bool(refusal),
                    help=refusal or "Computes the runs that are missing, and resumes those that ended early.",
                )  # fmt: skip
            st.button(
                "Remove", icon=":material/close:", key="remove sweep", on_click=_act,
                args=(sweep, lambda: forget(session.store(), sweep.id)), disabled=bool(refusal),
                help=refusal or "Removes the sweep from this page. Its runs stay.",
            )  # fmt: skip


def _act(sweep: Sweep, action: Any) -> None:
    with problems.shown(st.toast):
        rights.require([sweep])
        action()


def _metrics(state: State, table: Sequence[Row]) -> None:
    """Best point so far, runs, cost so far, and what the rest will cost."""
    store, ids = session.store(), list(dict.fromkeys(run for _, run in state.complete))
    seconds = sum(one["seconds"] for one in store.results_of(ids, ["seconds"]).values())
    rest = distinct([trial for trial, run in state.found if run is None or run.state is not RunState.COMPLETE])
    speed = seconds_for_work(store, state.sweep.start.model, ids or None)
    unknown = state.sweep.of_all - len(state.found)  # runs of points that the sampler has not proposed yet
    best = list({row.width: row for row in reversed(table)}.values())[::-1]  # rows of a width are sorted, the best first
    left = None if speed is None else speed * (sum(trial.cell.cost for trial in rest) + unknown * _mean_cost(state))
    so_far = " so far" if rest or unknown else ""
    with st.container(horizontal=True, key="metrics of a sweep"):
        for row in best:
            st.metric(f"Best{so_far}, {row.width}", _with_spread(row), border=True, help=_EXPLAINED)
        st.metric("Runs", f"{len(ids)} of {len(ids) + len(rest) + unknown}", border=True)
        st.metric(f"Cost{so_far}", duration(seconds), border=True, help="The time of its complete runs, added up.")
        if rest or unknown:
            known = "unknown" if left is None else f"about {duration(left)}"
            st.metric("Cost of the rest", known, border=True, help="By the speed of its runs, or of the newest ones of this network.")
    if best:
        st.markdown("  \n".join(text.plain(_in_words(row)) for row in best))


def _mean_cost(state: State) -> float:
    """Of a run of the sweep, in images times iterations."""
    return mean(trial.cell.cost for trial, _ in state.found) if state.found else 0.0


def _in_words(row: Row) -> str:
    values = ", ".join(f"{knob_symbol(name)} {_shown(value)}" for name, value in row.values.items() if value is not None)
    return f"Best at {row.width}: {method_name(row.method)}{' with ' if values else ''}{values}."


def _with_spread(row: Row) -> str:
    return f"{row.mean:.2f} %" + ("" if row.spread is None else f" ± {row.spread:.2f}")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figures(table: Sequence[Row], beside: charts.Figure, key: str, name: str) -> None:
    """Parallel coordinates, and beside them the figure of one knob or two. name: of its files."""
    left, right = st.columns(2)
    with left:
        coordinates = charts.parallel_figure(table, tables.selected(_TABLE), [_id(row) for row in table])
        figures.show(json_of(coordinates), "parallel coordinates", "sweep", on_pick=_toggle)
    with right:
        figures.show(json_of(beside), key, name)


def _id(row: Row) -> str:
    """Of a row in the address: that of the run of its first seed."""
    return row.runs[0]


def _toggle(row: Any) -> None:
    chosen = tables.selected(_TABLE)
    tables.select(_TABLE, [one for one in chosen if one != row] if row in chosen else [*chosen, str(row)])


def _points(table: Sequence[Row]) -> None:
    """The table of the points that were measured."""
    ids = [_id(row) for row in table]
    has_shares = any(row.share < 1 for row in table)
    picked = tables.table(
        [_table_line(row, has_shares) for row in table],
        _TABLE,
        _COLUMNS,
        alt="Points of the sweep",
        ids=ids,
        select="many",
        links=lambda run: session.page_address("quantize", run),
    )
    if picked.opened:
        session.open_run("quantize", picked.opened)
    st.caption(_EXPLAINED)


def _in_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _table_line(row: Row, with_share: bool) -> dict[str, Any]:
    return {
        "agreement": row.mean,
        "spread": row.spread,
        "error": row.standard_error,
        "method": method_name(row.method),
        **{knob_symbol(name): value for name, value in row.values.items()},
        **({"share": _in_percent(row.share)} if with_share else {}),
        "seeds": ", ".join(map(str, row.seeds)),
        "KL": mean(row.kl),
        "seconds": row.seconds,
        "run": "open",
    }
