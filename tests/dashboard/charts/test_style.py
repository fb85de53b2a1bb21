"""What all charts share."""

import json

import numpy as np

from dashboard.charts.style import figure, height_of, json_of, log_axis


def test_ticks_of_a_logarithmic_axis():
    assert [tick for tick in log_axis([20, 300])["ticktext"] if 20 <= float(tick) <= 300] == ["20", "50", "100", "200"]
    assert [tick for tick in log_axis([0.05, 8])["ticktext"] if 0.05 <= float(tick) <= 8] == ["0.1", "0.3", "1", "3"]
    assert [tick for tick in log_axis([1, 1e5])["ticktext"] if float(tick) <= 1e5] == ["1", "10", "100", "1000", "10000", "100000"]
    low, high = log_axis([10, 1000, float("nan"), 0])["range"]
    assert low < 1 < 3 < high
    assert log_axis([])["range"][0] < log_axis([])["range"][1]
    assert np.isfinite(log_axis([5.0])["range"]).all()
    assert "tickvals" not in log_axis([21, 24])  # none of them is a power of ten, or two or five of it
    assert log_axis([21, 24])["type"] == "log"


def test_height_is_read_from_the_layout():
    made = figure([{"name": '"height": 7', "y": np.arange(3.0)}], 'a "title"', 340)
    assert height_of(json_of(made, config={"height": 1})) == json.loads(json_of(made))["layout"]["height"] == 340
