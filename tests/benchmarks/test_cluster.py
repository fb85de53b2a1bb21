"""The simulation of a cluster, against schedules by hand."""

import pytest

from benchmarks.cluster import makespan


@pytest.mark.parametrize(
    ("tasks", "places", "handled", "expected"),
    [
        ([5.0] * 4, 1, 0.0, 20.0),
        ([5.0] * 4, 4, 0.0, 5.0),
        ([5.0] * 5, 4, 0.0, 10.0),  # the fifth waits for a place
        ([5.0] * 4, 8, 0.0, 5.0),  # more places than tasks
        ([5.0] * 4, 4, 2.0, 13.0),  # all are ready at once and handled one after another
        ([1.0] * 100, 1, 3.0, 301.0),  # the program is what takes the time
        ([6.0, 1.0, 1.0, 1.0], 2, 0.0, 6.0),  # the long one beside the short ones
    ],
)
def test_time_until_all_tasks_are_handled(tasks, places, handled, expected):
    assert makespan(tasks, places, handled) == pytest.approx(expected)
