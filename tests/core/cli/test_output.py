"""Results in words."""

from core.cli.output import in_words


def test_what_is_unknown_or_empty_has_no_line():
    found = in_words(
        {"top1": None, "bits": 0, "note": "", "real": {}, "classes": [], "held_out": {"trained": {"kl": 0.5, "score_sqnr": None}}}
    )
    assert found.split("\n") == [f"{'bits':<24} 0", f"{'note':<24} ", "held_out", "  trained", f"    {'kl':<24} 0.5"]


def test_the_worst_layer_stands_for_all():
    layers = {"measured_on": "64 held-out synthetic images", "sqnr": {"first": 30.5, "exact": None, "last": 12.25}}
    assert in_words({"layers": layers}).split("\n") == [
        "layers",
        f"  {'measured_on':<24} 64 held-out synthetic images",
        f"  {'sqnr':<24} 12.25 dB at least, in last",
    ]
    assert "sqnr" not in in_words({"layers": {**layers, "sqnr": {"exact": None}}})
