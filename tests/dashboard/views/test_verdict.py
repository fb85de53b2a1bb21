"""Verdicts on the pages of a finished run: the sentences of what it stored; and the classes and layers below them."""

import json

import pytest
from app_pages import component, page, texts

from core.comparison import verdict, words
from dashboard import session
from dashboard.names import method_name
from dashboard.tables import results


def of_run(run_id):
    """Sentences on diversity, and on networks."""
    stored = session.store().results(run_id)
    similar, networks = verdict.of_similarity(results.diversities(stored)), verdict.of_quantization(stored)
    return words.sentences([similar], method_name), words.sentences(networks, method_name)


@pytest.mark.parametrize("name", ["studio", "quantize", "diversity", "methods"])
def test_every_page_says_what_its_run_has_shown(with_finished_run, name):
    diversity, networks = of_run(with_finished_run)
    shown = texts(page(name, run=with_finished_run)).replace("\u2060", "")
    for page_name, sentences in (("diversity", diversity), ("quantize", networks)):
        assert all((f"{sentence}." in shown) == (name in (page_name, "studio", "methods")) for sentence in sentences)
    assert ("L_BNS" in shown.partition("t test")[0]) or name != "studio"


def test_bits_are_changed_beside_the_chart_of_sensitivity(with_finished_run):
    app = page("quantize", run=with_finished_run)
    (chart,) = [one["figure"] for one in component(app, "figure") if "Sensitivity" in one["figure"]]
    layers = session.store().result(with_finished_run, "layers/mi-fgsm/W4A4")["layers"]
    bars, rings = json.loads(chart)["data"]
    assert bars["y"] == pytest.approx([100 * 10 ** (-layer["score_sqnr"] / 20) for layer in layers], rel=1e-3)
    assert rings["x"] == []
    (bits,) = [group for group in app.button_group if str(group.label).startswith("Bits of layer")]
    bits.set_value(6).run()
    assert not app.exception
    assert "1 of 22 layers changed" in texts(app)
    editor = next(frame.value for frame in app.dataframe if "output dB" in frame.value)
    assert sorted(editor["bits"]) == [4] * 21 + [6]
    (chart,) = [one["figure"] for one in component(app, "figure") if "Sensitivity" in one["figure"]]
    bars, (ring,) = json.loads(chart)["data"][0], json.loads(chart)["data"][1]["y"]
    assert ring == pytest.approx(max(bars["y"]) / 4)


def test_classes_are_shown_when_they_are_asked_for(with_finished_run):
    assert "give other classes" not in texts(page("quantize", run=with_finished_run))
    shown = texts(page("quantize", f"opened/confusion/{with_finished_run}", run=with_finished_run))
    answers = session.store().result(with_finished_run, "answers/mi-fgsm/W4A4")["real"]
    kept = session.store().result(with_finished_run, "accuracy/mi-fgsm/W4A4")["kept"]
    theirs, ours = (verdict.Answers.unpacked(answers[name]).classes for name in ("full precision", kept))
    assert f"The networks give other classes to {int((theirs != ours).sum()):,} of {len(ours):,} images." in shown
    assert "full precision: " in shown
