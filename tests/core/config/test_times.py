import pytest

from core.config.times import budget_of, minutes_of
from core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("10m", 10), ("90s", 1.5), ("5", 5), ("0.5", 0.5), ("2h", 120), ("1h30m", 90), ("1h30", 90), ("1.5h", 90), ("1h2m30s", 62.5),
        ("5 minutes", 5), ("1 hour", 60), ("8 hours", 480), ("1 h 30 min", 90), (" 30 SEC ", 0.5),
    ],
)  # fmt: skip
def test_minutes(text, minutes):
    assert minutes_of(text) == budget_of(text) == pytest.approx(minutes)


@pytest.mark.parametrize("text", ["", "soon", "m", "-5", "5d", "1m 1h", "5 5", "1e3", "nan"])
def test_no_time(text):
    with pytest.raises(ConfigError, match="^time must be written like 90s, 10m or 1h30m, got "):
        minutes_of(text)


def test_a_budget_is_limited():
    assert minutes_of("0s") == 0
    with pytest.raises(ConfigError, match="^time must be more than 0, got '0s'$"):
        budget_of("0s")
    with pytest.raises(ConfigError, match="10080"):
        budget_of("169h")
