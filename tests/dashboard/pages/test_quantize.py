"""The Quantize page in Streamlit's AppTest: accuracies, layers, comparison with other runs and the paper, new runs on the same images."""

import json
from dataclasses import replace

import pytest
from app_pages import component, page, quantized_at_8_bits, tables, texts

from core.runs.state import RunState
from dashboard import session


def test_quantize_shows_accuracy_and_the_paper(with_finished_run):
    app = page("quantize")
    assert "first 600 CIFAR-10 test images" in texts(app)
    table = next(table for table in tables(app) if "calibrated %" in table)
    assert sorted(table["images by"]) == ["Adam", "MI-FGSM"]
    assert (table["trained %"] > 50).all()
    paper = next(table for table in tables(app) if "DFFG" in table)
    assert list(paper["DFFG"]) == [84.68, 91.63, 93.30]
    # accuracy, training curve, accuracy checks; error by layer, two histograms of one layer, and sensitivity
    app.selectbox(key=f"layers/{with_finished_run}/mi-fgsm/W4A4/layer").set_value("output").run()
    assert not app.exception
    assert len(component(app, "figure")) == 7
    assert "On the same 500 evaluation images" in texts(app)
    editor = next(frame.value for frame in app.dataframe if "output dB" in frame.value)
    assert len(editor) == 22
    assert list(editor["output dB"]) == sorted(editor["output dB"])
    assert (editor["bits"] == 4).all()


def test_a_layer_is_shown_before_and_after_the_training(with_finished_run):
    """Values by hand; and the layers of a run of an earlier version, which did not store those of the calibrated network."""

    def grid(step, clipped, zero, **more):
        counts = {"start": -10.5, "width": 0.25, "counts": [0] * 40 + [4] + [0] * 39}
        return {"lowest": -8, "highest": 7, "scale": step, "zero_point": zero, "clipped": clipped, "histogram": counts, **more}

    layer = {
        "name": "stem", "bits": 4, "weights": 1200, "sqnr": 20.0, "weight_sqnr": 22.0, "score_sqnr": 20.0,
        "weight": grid([0.01, 0.05], 1.25, [-1, 1]), "input": grid([0.1, 0.1], 0.0, [-8, -8], bits=4, sqnr=21.0),
    }  # fmt: skip
    before = {"weight": grid([0.01, 0.04], 0.5, [0, 1]), "input": grid([0.2, 0.2], 0.75, [-8, -8], bits=4, sqnr=None)}
    shown = {}
    for name, more in {"now": {"calibrated": before, "moved": 12.345}, "earlier": {}}.items():
        copy = copied(with_finished_run, 1, name)
        found = {"images": 64, "weight_size": 4800, "measured_on": "64 held-out synthetic images", "layers": [{**layer, **more}]}
        session.store().set_result(copy, "layers/mi-fgsm/W4A4", found)
        app = page("quantize", run=copy)
        figures = [json.loads(one["figure"]) for one in component(app, "figure")]
        histograms = [one for one in figures if one["layout"]["title"]["text"].endswith("of stem")]
        shown[name] = [[trace.get("name") for trace in one["data"]] for one in histograms], texts(app)
    assert shown["now"][0] == [["trained", "calibrated"]] * 2
    assert (
        "1,200 weights. Training moved 12.3 % of them to another level. Step 0.01 to 0.05 by channel (calibrated 0.01 to 0.04 by channel); "
        "clipped 1.25 % (calibrated 0.5 %); zero at level -1 to 1 (calibrated 0 to 1)."
    ) in shown["now"][1]
    assert (
        "Logarithmic axis. Step 0.1 (calibrated 0.2); clipped 0 % (calibrated 0.75 %); SQNR 21.0 dB (calibrated no error)."
        in shown["now"][1]
    )
    assert shown["earlier"][0] == [["trained"]] * 2
    assert "1,200 weights. Step 0.01 to 0.05 by channel; clipped 1.25 %." in shown["earlier"][1]


def test_quantize_starts_another_evaluation(with_finished_run):
    app = page("quantize")
    app.button(key=f"layers/{with_finished_run}/mi-fgsm/W4A4/evaluate").click().run()
    assert not app.exception
    newest = session.store().runs()[0]
    assert newest.id != with_finished_run
    assert (newest.config.methods, newest.config.bits, newest.config.training.steps) == (("mi-fgsm",), (4,), 0)
    session.manager().control(newest.id).stop()
    session.manager().wait(newest.id)


def copied(run_id, seed, name, **training):
    """A copy of a finished run with another seed, whose accuracies are `seed` points lower."""
    store = session.store()
    config = store.config(run_id)
    config = replace(
        config,
        machine=replace(config.machine, seed=seed),
        training=replace(config.training, **training),
    )
    copy = store.create(config, name)
    for key, value in store.results(run_id).items():
        if key.startswith("accuracy/"):
            value = {**value, **{name: value[name] - seed for name in ("trained", "quantized")}}
        store.set_result(copy, key, value)
    store.set_state(copy, RunState.RUNNING)
    store.set_state(copy, RunState.COMPLETE)
    return copy


def accuracy_lines(app):
    (table,) = [table for table in tables(app) if "calibrated %" in table]
    return [row for _, row in table.iterrows()]


def test_quantize_averages_runs_that_differ_only_in_seeds(with_finished_run):
    seeds = [copied(with_finished_run, 1, "seed one"), copied(with_finished_run, 3, "seed three")]
    other = copied(with_finished_run, 5, "other range", range="minmax")
    session.show_run(with_finished_run)
    app = page("quantize", run=with_finished_run)
    top1 = [line["trained %"] for line in accuracy_lines(app)]
    app.button(key=f"add seeds {with_finished_run}").click().run()
    assert not app.exception
    assert app.query_params["with"] in (",".join(seeds[::-1]), [",".join(seeds[::-1])])
    lines = accuracy_lines(app)
    assert [line["runs"] for line in lines] == [3, 3]
    # the mean of t, t - 1 and t - 3
    assert [line["trained %"] for line in lines] == pytest.approx([value - 4 / 3 for value in top1], abs=0.011)
    assert [line["±"] for line in lines] == [1.53, 1.53]
    assert "standard deviation over 3 seeds" in texts(app)
    # the address chooses runs, methods of the paper and bars, and unknown runs are ignored
    address = {"with": f"{other},nonsense,{seeds[0]}", "paper": "zeroq,gdfq", "as": "bars"}
    app = page("quantize", run=with_finished_run, **address)
    assert [(line["runs"], line["setting"]) for line in accuracy_lines(app)] == 2 * [(2, "range lsq"), (1, "range minmax")]
    assert app.multiselect(key=f"accuracy paper/{with_finished_run}").value == ["zeroq", "gdfq"]
    assert '"type":"bar"' in component(app, "figure")[0]["figure"].replace(" ", "")


@pytest.mark.slow
def test_quantize_starts_from_the_images_of_a_run(with_finished_run):
    newest = quantized_at_8_bits(f"quantize/{with_finished_run}/False")
    assert newest.id != with_finished_run
    assert newest.config.images_from == str(session.store().run_folder(with_finished_run) / "images")
    session.manager().wait(newest.id)
    results = session.store().results(newest.id)
    assert abs(results["accuracy/mi-fgsm/W8A8"]["quantized"] - results["full_precision"]["top1"]) < 1.0
