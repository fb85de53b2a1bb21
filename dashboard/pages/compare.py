"""Compare: several runs side by side, starting with the settings that differ."""

import streamlit as st

from dashboard import session, text
from dashboard.charts import comparison as charts
from dashboard.charts.style import json_of
from dashboard.components import figures, tables
from dashboard.components.empty import empty
from dashboard.tables.columns import Column
from dashboard.views import comparison

st.title("Compare")
st.caption("Several runs side by side: the settings that differ, curves on one axis, and accuracies.")

if not session.store().lists.count():
    empty("No runs yet. Start one in the Studio, then another with one setting changed; their curves and accuracies are compared here.")
    st.stop()
chosen = comparison.choose()
if len(chosen) < 2:
    empty(
        "Choose two or more runs above, or select their rows under Runs and press Compare. "
        "To make a run that differs in one setting, use “Start again with these settings” under Runs.",
        "Open Runs",
        "runs",
    )
    st.stop()


def side_by_side(runs):
    """Settings, curves and accuracies."""
    compared = comparison.compared(runs)
    for one in compared:
        if one.config is None:
            st.warning(f"This version cannot read the settings of {text.plain(one.title)}.", icon=":material/info:")
    settings(compared)
    curves(compared)
    accuracies(compared)


def settings(compared):
    """A table of the settings that differ, and one of the others."""
    different, equal = charts.settings_table(compared)
    st.header("Settings that differ")
    if different:
        tables.table(different, "differ", alt="Settings that differ between the runs")
    else:
        st.caption("None: these runs have the same settings.")
    with st.expander(f"{len(equal)} identical settings", key="identical settings"):
        tables.table(equal, "equal", alt="Identical settings")


def curves(compared):
    """Chart options, the chart, and a table of last and best values."""
    st.header("Curves")
    with st.container(horizontal=True, vertical_alignment="top"):
        label = st.selectbox("Curve", list(charts.curves_of(compared)), key="curve", bind="query-params", width=220)
        axis = st.segmented_control("Horizontal axis", charts.AXES, default=charts.AXES[0], required=True, key="x", bind="query-params")
        smoothing = st.slider(
            "Smoothing",
            0.0,
            0.99,
            0.0,
            0.01,
            key="smoothing",
            bind="query-params",
            width=240,
            help="Decay of an exponential moving average, as in TensorBoard. 0: no smoothing; 0.9 averages over about ten values; near 1 "
            "the curve lags. The table below always shows unsmoothed values.",
        )
        log = st.toggle("Logarithmic", key="log", bind="query-params", help="Values of 0 and below are not drawn on a logarithmic axis.")
    curve, base = charts.curves_of(compared)[label], charts.baseline_of(compared)
    compared = comparison.with_curves(compared, curve.stage)
    if not any(curve.name in columns for one in compared for columns in one.curves.values()):
        st.caption(f"None of these runs has recorded {label}.")
        return
    methods = st.multiselect(
        "Methods", charts.series_of(compared), format_func=charts.method_name, placeholder="all", key="methods", bind="query-params"
    )
    figures.show(json_of(charts.curves_figure(compared, label, axis, log, smoothing, methods)), "curves", f"comparison {label}")
    st.caption(
        "Color: run. Dash: method or bit width."
        + (" Thick line: baseline." if base.run.pinned else "")
        + (" Each jump is a new batch that starts from new noise." if curve.stage == "generation" else "")
    )
    tables.table(
        charts.values_table(compared, label),
        "values",
        dict.fromkeys(("last", "best", "last − baseline", "best − baseline"), Column(significant=4)),
        alt="Last and best value of each run",
    )
    st.caption(f"Differences are relative to {text.plain(base.title)}, {'the baseline' if base.run.pinned else 'the first of these runs'}.")


def accuracies(compared):
    """Chart and table of top-1 accuracy by run and bit width."""
    figure = charts.accuracy_figure(compared)
    if figure is not None:
        st.header("Accuracy")
        figures.show(json_of(figure), "accuracies", "comparison accuracy")
        rows = charts.accuracy_table(compared)
        digits = {name: Column(digits=2) for row in rows for name in row if name.endswith(("%", "baseline"))}
        tables.table(rows, "accuracy", digits, alt="Accuracy of each run")


comparison.follow(chosen, side_by_side)
