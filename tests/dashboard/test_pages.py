"""Each page by Streamlit's own AppTest: what it shows of real runs, and what its buttons do."""

import io
import json
import shutil
import time
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
import streamlit
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest
from waiting import wait_until

from core.config import PRESETS, EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.models.full_precision import find_model
from core.models.registry import MODELS
from core.runs import paper_table
from core.runs.events import SECONDS_BETWEEN_FRAMES
from core.runs.paper_table import row_config
from core.runs.state import RunState
from dashboard import session
from dashboard.text import plain
from dashboard.updates import live_view

SHORT = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=20, iterations=3, batch_size=20, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)
LONG = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=20, iterations=5000, batch_size=20, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)


def page(name, *opened):
    """The page, with these expanders opened, which make what is in them only then."""
    app = AppTest.from_file(f"../../dashboard/pages/{name}.py", default_timeout=60)
    for expander in opened:
        app.session_state[expander] = True
    app.run()
    assert not app.exception, app.exception
    return app


def texts(app):
    """What a person reads: Markdown's backslashes before what came from outside are not shown."""
    read = [element.value for kind in (app.markdown, app.caption, app.info, app.error) for element in kind]
    said = [line for words in component(app, "words") for line in (words["title"], *words["lines"])]
    return " ".join([*read, *htmls(app), *said]).replace("\\", "")


def htmls(app):
    return [element.proto.body for element in app.get("html")]


def components(app):
    """Name and data of our own elements, in their order."""
    found = [element.proto for element in app.get("bidi_component")]
    return [(proto.component_name.removeprefix("dashboard."), json.loads(proto.json)) for proto in found]


def component(app, name):
    return [data for own, data in components(app) if own == name]


def studio(run_id, **address):
    """The Studio at an address."""
    app = AppTest.from_file("../../dashboard/pages/studio.py", default_timeout=60)
    for name, value in {"run": run_id, **address}.items():
        app.query_params[name] = str(value)
    app.run()
    assert not app.exception, app.exception
    return app


@pytest.mark.parametrize(
    ("name", "first_step"),
    [
        ("studio", "Press Start"),
        ("quantize", "Studio"),
        ("diversity", "Studio"),
        ("runs", "Studio"),
        ("compare", "Studio"),
        ("export", "Studio"),
        ("paper", "press Measure"),
    ],
)
def test_an_empty_page_says_what_to_do_first(runs_folder, name, first_step, tmp_path, monkeypatch):
    (tmp_path / "measured.json").write_text("[]")
    monkeypatch.setattr(paper_table, "MEASURED", tmp_path / "measured.json")
    app = page(name)
    assert any(first_step in info.value for info in app.info)


@pytest.mark.slow
def test_studio_starts_a_run_with_the_values_of_its_sliders_and_form(runs_folder):
    app = page("studio")
    app.slider(key="new/quick/epsilon").set_value(0.2)
    app.select_slider(key="new/quick/beta").set_value(0.5)
    app.run()
    app.number_input(key="quick/generation/images").set_value(64)
    app.number_input(key="quick/generation/iterations").set_value(7)
    app.multiselect(key="quick/bits").set_value([])
    app.text_input(key="quick/encoder").set_value("")
    app.button(key="start").click().run()
    assert not app.exception
    (run,) = session.store().runs()
    config = run.config.generation
    assert run.config.lr_by_bits == PRESETS["quick"].lr_by_bits
    assert (config.epsilon, config.beta, config.images, config.iterations) == (0.2, 0.5, 64, 7)
    assert run.config.bits == ()
    wait_until(lambda: session.store().run(run.id).state is RunState.COMPLETE)
    app.run()
    assert app.query_params["run"] == run.id
    assert [name for name, _ in components(app) if name != "words"] == ["player", "sheet", "sheet", "figure"]


def test_studio_says_what_is_wrong_and_starts_nothing(runs_folder):
    app = page("studio")
    app.number_input(key="quick/generation/images").set_value(51)
    app.button(key="start").click().run()
    assert [error.value for error in app.error] == [plain("images is 51: allowed is a multiple of snapshots (4)")]
    assert session.store().runs() == []


@pytest.mark.slow
def test_studio_shows_a_finished_run_with_both_optimizers_side_by_side(with_finished_run):
    app = page("studio")
    assert "MI-FGSM" in texts(app)
    assert "Adam" in texts(app)
    (player,) = component(app, "player")
    assert (player["steps"], player["latest"], player["at"], player["following"]) == ([1, 2, 3], 4, None, "")
    sheets = component(app, "sheet")
    assert [sheet["alt"] for sheet in sheets] == ["synthetic images by MI-FGSM", "synthetic images by Adam"]
    assert sheets[0]["header"][1] == "automobile"
    assert "teacher: " in sheets[0]["cells"][0][1]


def test_a_link_opens_both_methods_at_its_iteration(with_finished_run):
    newest, app = page("studio"), studio(with_finished_run, at=2)
    assert component(app, "player")[0]["at"] == 2
    frames = [session.store().frames.read(with_finished_run, method, 2) for method in ("mi-fgsm", "adam")]
    for frame, sheet, last in zip(frames, component(app, "sheet"), component(newest, "sheet")):
        assert sheet["picture"] != last["picture"]
        assert f"{100 * frame.confidence[0]:.0f} %" in sheet["cells"][0][1]
    assert texts(app).count("iteration 2 of 4") >= 4  # above both sheets, and with the values of each method


@pytest.mark.parametrize(("at", "problem"), [("x", "at is 'x' in the address"), ("99", ""), ("-3", "allowed is the number")])
def test_a_link_to_no_iteration_shows_the_newest(with_finished_run, at, problem):
    app = studio(with_finished_run, at=at)
    assert component(app, "player")[0]["at"] is None
    assert [plain(problem) in warning.value for warning in app.warning] == ([True] if problem else [])


def test_a_link_opens_an_image_with_its_history_in_both_methods(with_finished_run):
    app = studio(with_finished_run, method="adam", image=3, at=2)
    assert [sheet["chosen"] for sheet in component(app, "sheet")] == [None, 3]
    (large,) = [html for html in htmls(app) if 'alt="image 3 by Adam"' in html]
    strips = [html for html in htmls(app) if "data-step" in html]
    assert len(strips) == 2
    for strip in strips:
        assert [f'data-step="{step}"' in strip for step in (1, 2, 3, 4)] == [True] * 4
    assert strips[0] != strips[1]
    assert "Adam, image 3: cat" in texts(app)
    app.button(key="close image").click().run()
    assert "image" not in app.query_params
    assert "method" not in app.query_params
    assert not any("data-step" in html or html == large for html in htmls(app))


@pytest.mark.parametrize("address", [{"method": "sgd", "image": 1}, {"method": "adam", "image": 64}])
def test_a_link_to_no_image_says_which_there_are(with_finished_run, address):
    (warning,) = studio(with_finished_run, **address).warning
    assert f"image {address['image']} of method {address['method']}" in warning.value.replace("\\", "")
    assert "allowed are mi-fgsm, adam and 0 to 19" in warning.value.replace("\\", "")


@pytest.mark.parametrize(
    ("view", "titles"),
    [
        ("loss", ["Loss: curves over iterations"]),
        ("layers", ["Layers over time: curves over iterations"]),
        ("heatmaps", ["L_BNS by layer and iteration"]),
        ("layer", ["L_BNS of every layer at the shown iteration", "channels of layer 5, batch against running statistics"]),
        ("nonsense", ["Loss: curves over iterations"]),
    ],
)
def test_a_link_opens_a_view_and_only_that_one_is_drawn(with_finished_run, view, titles):
    app = studio(with_finished_run, view=view, layer=5)
    assert [figure["title"] for figure in component(app, "figure")] == titles


def test_the_chosen_view_and_layer_are_in_the_address(with_finished_run):
    app = studio(with_finished_run)
    app.segmented_control(key="view").set_value("layer").run()
    assert app.query_params["view"] == "layer"
    app.selectbox(key="layer/0").set_value(6).run()
    assert app.query_params["layer"] == "7"
    assert component(app, "figure")[1]["title"].startswith("channels of layer 7")


def test_a_run_of_an_earlier_version_is_shown_without_what_it_did_not_write_down(with_finished_run):
    store = session.store()
    for path in (store.run_folder(with_finished_run) / "frames").rglob("*.npz"):
        with np.load(path) as file:
            known = {name: file[name] for name in ("images", "labels", "step") if name in file}
        path.unlink()
        if known:
            np.savez(path, **known)
    session.kept.clear()  # drawn for other tests from the same run
    app = studio(with_finished_run, view="layer", method="adam", image=3)
    assert component(app, "sheet")[0]["cells"][0] == [0, "airplane", False]
    assert "was not written down" in texts(app)
    assert "did not write down the statistics" in texts(app)


@pytest.mark.slow
def test_studio_turns_pauses_steps_and_stops_a_running_job(runs_folder, monkeypatch):
    for limit in ("_SECONDS_FOR_A_STEP", "_SECONDS_FOR_PICTURES"):
        monkeypatch.setattr(live_view, limit, 5)  # so that a busy machine makes no difference
    manager, store = session.manager(), session.store()
    run_id = manager.start(LONG)
    wait_until(lambda: len(store.records(run_id, "generation")) > 2)
    app = page("studio")
    app.button(key="pause").click().run()
    wait_until(lambda: store.run(run_id).state is RunState.PAUSED)
    steps = len(store.records(run_id, "generation"))
    app.slider(key=f"live/{run_id}/epsilon").set_value(0.03).run()
    app.select_slider(key=f"live/{run_id}/alpha_tv").set_value(0.01).run()
    time.sleep(SECONDS_BETWEEN_FRAMES)  # pictures that follow each other faster are not written down
    app.button(key="step").click().run()
    wait_until(lambda: len(store.records(run_id, "generation")) == steps + 2)  # one iteration of each of two methods
    changed = {(change["method"], change["name"], change["value"], change["step"]) for change in store.changes(run_id)}
    assert changed == {
        ("mi-fgsm", "epsilon", 0.03, steps // 2),
        ("mi-fgsm", "alpha_tv", 0.01, steps // 2),
        ("adam", "alpha_tv", 0.01, steps // 2),
    }
    # what one step did is seen as soon as it was pressed
    assert component(app, "player")[0]["latest"] == steps // 2 + 1
    figure = json.loads(component(app, "figure")[0]["figure"])
    assert {note["text"] for note in figure["layout"]["annotations"]} >= {"ε = 0.03, α_TV = 0.01"}
    app.segmented_control(key="knobs of").set_value("adam").run()
    assert app.slider(key=f"live/{run_id}/adam/epsilon").disabled
    assert not app.slider(key=f"live/{run_id}/adam/lr").disabled
    app.select_slider(key=f"live/{run_id}/adam/beta").set_value(5.0).run()
    app.button(key="step").click().run()
    wait_until(lambda: len(store.records(run_id, "generation")) == steps + 4)
    (last,) = [change for change in store.changes(run_id) if change["name"] == "beta"]
    assert (last["method"], last["value"], last["step"]) == ("adam", 5.0, steps // 2 + 1)
    app.button(key="stop").click().run()
    wait_until(lambda: store.run(run_id).state is RunState.STOPPED)
    assert len(store.records(run_id, "generation")) == steps + 4


def test_a_failed_run_says_why(runs_folder):
    run_id = session.manager().start(SHORT.with_knobs({"encoder": "nonsense"}))
    session.manager().wait(run_id)
    app = page("studio")
    assert session.store().run(run_id).state is RunState.FAILED
    assert any("nonsense" in error.value and "embedded" in error.value for error in app.error)
    assert "UnknownNameError" in app.code[0].value


def test_quantize_shows_accuracy_and_the_paper(with_finished_run):
    app = page("quantize")
    assert "first 2,000 CIFAR-10 test images" in texts(app)
    table = next(frame.value for frame in app.dataframe if "calibrated %" in frame.value)
    assert sorted(table["images by"]) == ["adam", "mi-fgsm"]
    assert (table["trained %"] > 50).all()
    paper = next(frame.value for frame in app.dataframe if "DFFG" in frame.value)
    assert list(paper["DFFG"]) == [84.68, 91.63, 93.30]
    # accuracy, a curve of the training and the accuracy on the way; the errors of the layers and the two histograms of one
    app.selectbox(key=f"layers/{with_finished_run}/mi-fgsm/W4A4/layer").set_value("output").run()
    assert not app.exception
    assert len(component(app, "figure")) == 6
    assert "On 500 of the evaluation images" in texts(app)
    editor = next(frame.value for frame in app.dataframe if "output dB" in frame.value)
    assert len(editor) == 22
    assert list(editor["output dB"]) == sorted(editor["output dB"])
    assert (editor["bits"] == 4).all()


def test_quantize_evaluates_other_bit_widths_again(with_finished_run):
    app = page("quantize")
    app.button(key=f"layers/{with_finished_run}/mi-fgsm/W4A4/evaluate").click().run()
    assert not app.exception
    newest = session.store().runs()[0]
    assert newest.id != with_finished_run
    assert (newest.config.methods, newest.config.bits, newest.config.training.steps) == (("mi-fgsm",), (4,), 0)
    session.manager().control(newest.id).stop()
    session.manager().wait(newest.id)


def copied(run_id, seed, name, **quantization):
    """A finished run like this one, with other seeds and accuracies that are `seed` points lower."""
    store = session.store()
    config = store.config(run_id)
    config = replace(
        config,
        generation=replace(config.generation, seed=seed),
        training=replace(config.training, quantization_seed=seed, **quantization),
    )
    copy = store.create(config, name)
    for key, value in store.results(run_id).items():
        if key.startswith("accuracy/"):
            value = {**value, "quantized": value["quantized"] - seed}
        store.set_result(copy, key, value)
    store.set_state(copy, RunState.RUNNING)
    store.set_state(copy, RunState.COMPLETE)
    return copy


def accuracy_lines(app):
    (table,) = [frame.value for frame in app.dataframe if "calibrated %" in frame.value]
    return [row for _, row in paper_table.iterrows()]


def test_quantize_averages_runs_that_differ_only_in_seeds(with_finished_run):
    seeds = [copied(with_finished_run, 1, "seed one"), copied(with_finished_run, 3, "seed three")]
    other = copied(with_finished_run, 5, "other range", range="minmax")
    session.show_run(with_finished_run)
    app = AppTest.from_file("../../dashboard/pages/quantize.py", default_timeout=60)
    app.query_params["run"] = with_finished_run
    app.run()
    top1 = [line["trained %"] for line in accuracy_lines(app)]
    app.button(key=f"add seeds {with_finished_run}").click().run()
    assert not app.exception
    assert app.query_params["with"] in (",".join(seeds[::-1]), [",".join(seeds[::-1])])
    lines = accuracy_lines(app)
    assert [line["runs"] for line in lines] == [3, 3]
    # of t, t - 1 and t - 3
    assert [line["trained %"] for line in lines] == pytest.approx([value - 4 / 3 for value in top1], abs=0.011)
    assert [line["±"] for line in lines] == [1.53, 1.53]
    assert "standard deviation over 3 seeds" in texts(app)
    # a copied link shows the same, and nothing of what is no run
    app = AppTest.from_file("../../dashboard/pages/quantize.py", default_timeout=60)
    app.query_params.update({"run": with_finished_run, "with": f"{other},nonsense,{seeds[0]}", "paper": "zeroq,gdfq", "as": "bars"})
    app.run()
    assert not app.exception
    assert [(line["runs"], line["setting"]) for line in accuracy_lines(app)] == 2 * [(2, "range lsq"), (1, "range minmax")]
    assert app.multiselect(key=f"accuracy paper/{with_finished_run}").value == ["zeroq", "gdfq"]
    assert '"type":"bar"' in component(app, "figure")[0]["figure"].replace(" ", "")


def quantized_at_8_bits(form):
    """The run that the page starts from this form for images that are there, without training."""
    app = page("quantize", form)
    app.multiselect(key="quick/bits").set_value([8])
    app.number_input(key="quick/steps").set_value(0)
    app.button(key="quantize").click().run()
    assert not app.exception
    return session.store().runs()[0]


@pytest.mark.slow
def test_quantize_starts_from_the_images_of_a_run(with_finished_run):
    newest = quantized_at_8_bits(f"quantize/{with_finished_run}/False")
    assert newest.id != with_finished_run
    assert newest.config.images_from == str(session.store().run_folder(with_finished_run) / "images")
    session.manager().wait(newest.id)
    results = session.store().results(newest.id)
    assert abs(results["accuracy/mi-fgsm/W8A8"]["quantized"] - results["full_precision"]["top1"]) < 1.0


def test_diversity_names_its_encoder_and_shows_both_sets(with_finished_run):
    app = page("diversity")
    assert "**embedded**, trained on the 50,000 CIFAR-10 training images" in texts(app)
    assert [metric.label for metric in app.metric] == ["MI\\-FGSM", "Adam", "noise", "real images"]
    assert "512 of the first 2,000 CIFAR-10 test images" in texts(app)
    assert len(component(app, "figure")) == 3
    bodies = [element.proto.body for element in app.get("html")]
    # for each optimizer: pairs in rows of four, an image with its nearest, and some images
    nearest = [body for body in bodies if "nearest to it" in body]
    assert ["image 0 by MI-FGSM" in nearest[0], "image 0 by Adam" in nearest[1], len(nearest)] == [True, True, 2]
    pairs = [session.store().result(with_finished_run, f"diversity/{method}")["neighbours"]["pairs"] for method in ("mi-fgsm", "adam")]
    rows = sum(max(1, len(own) // 4) for own in pairs)  # full ones
    assert len([body for body in bodies if "most alike" in body]) == rows
    assert len([body for body in bodies if "data:image/png" in body]) == rows + 4
    app.select_slider(key=f"neighbours of/{with_finished_run}").set_value(21).run()
    assert not app.exception
    assert app.query_params["image"] in ("21", ["21"])
    again = [element.proto.body for element in app.get("html") if "nearest to it" in element.proto.body]
    assert "image 21 by MI-FGSM" in again[0]
    assert again[0] != nearest[0]


def test_diversity_of_a_run_of_an_earlier_version_has_no_references(with_finished_run):
    store = session.store()
    for method in ("mi-fgsm", "adam"):
        known = store.result(with_finished_run, f"diversity/{method}")
        old = ("encoder", "encoder_trained_on", "images", "mean_similarity", "within_class_similarity", "histogram", "matrix")
        store.set_result(with_finished_run, f"diversity/{method}", {name: known[name] for name in old})
    for name in ("noise", "real"):
        store.set_result(with_finished_run, f"reference/{name}", {"left_out": "no image fits"})
    app = page("diversity")
    assert len(app.metric) == 2
    assert len(component(app, "figure")) == 3
    assert "No real images beside them: no image fits." in texts(app)


def test_diversity_with_an_unknown_encoder_fails_with_the_names_that_work(with_finished_run):
    app = page("diversity")
    app.text_input(key="diversity/encoder").set_value("nonsense")
    app.button(key="measure").click().run()
    newest = session.store().runs()[0]
    session.manager().wait(newest.id)
    assert "allowed are embedded" in session.store().run(newest.id).error
    app.run()
    assert any("nonsense" in error.value for error in app.error)


def test_runs_lists_what_was_done_before_the_server_started(with_finished_run):
    app = page("runs")
    table = app.dataframe[0].value
    assert list(table["name"]) == ["a finished run"]
    assert list(table["state"]) == ["complete"]
    assert table["W4A4 %"][0] == session.store().result(with_finished_run, "accuracy/mi-fgsm/W4A4")["quantized"]


def checkpoint(folder, **changes):
    """A network as somebody would upload it: the embedded one with another name."""
    path, spec = MODELS["resnet20_cifar10"]
    file = folder / "made.safetensors"
    save_file(load_file(path), file, metadata={"spec": json.dumps({**asdict(replace(spec, name="mine")), **changes})})
    return file.read_bytes()


def archive(count=2, name="cat/{}.png"):
    """A zip of black images."""
    picture, buffer = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, format="PNG")
    with zipfile.ZipFile(buffer, "w") as file:
        for index in range(count):
            file.writestr(zipfile.ZipInfo(name.format(index)), picture.getvalue())
    return buffer.getvalue()


def test_studio_takes_an_uploaded_network_and_offers_it_again(runs_folder, tmp_path):
    app = page("studio")
    app.number_input(key="quick/generation/images").set_value(8)
    app.number_input(key="quick/generation/iterations").set_value(6)
    app.multiselect(key="quick/bits").set_value([])
    app.text_input(key="quick/encoder").set_value("")
    app.file_uploader(key="quick/machine/upload network 0").set_value(("net.safetensors", checkpoint(tmp_path), "application/octet-stream"))
    app.button(key="start").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == []
    (run,) = session.store().runs()
    (path,) = session.uploads().networks()
    assert run.config.model == run.config.model == path
    assert run.name == "mine (10 classes), mi-fgsm + adam"
    session.manager().wait(run.id)
    assert session.store().run(run.id).state is RunState.COMPLETE
    again = page("studio")
    assert "quick/machine/model" not in [box.key for box in again.selectbox]  # of the form, which is made when it is opened
    again.session_state[f"new run/{run.id}"] = True
    again.run()
    assert not again.exception
    assert again.selectbox(key="quick/machine/model").options == [
        "resnet20_cifar10",
        "mine (10 classes), uploaded as net.safetensors",
    ]


@pytest.mark.slow
def test_studio_takes_a_checkpoint_of_others_with_what_the_file_does_not_say(runs_folder, tmp_path):
    torch.save({"model": load_file(MODELS["resnet20_cifar10"][0])}, tmp_path / "others.pth")
    app = page("studio")
    app.number_input(key="quick/generation/images").set_value(8)
    app.number_input(key="quick/generation/iterations").set_value(6)
    app.multiselect(key="quick/bits").set_value([])
    app.text_input(key="quick/encoder").set_value("")
    content = (tmp_path / "others.pth").read_bytes()
    app.file_uploader(key="quick/machine/upload network 0").set_value(("others.pth", content, "application/octet-stream"))
    app.text_input(key="quick/machine/architecture").set_value("pytorchcv:resnet20_cifar10")
    app.text_input(key="quick/machine/mean").set_value("0.5 0.5")
    app.button(key="start").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == [plain("mean must be three numbers, such as 0.485 0.456 0.406, got '0.5 0.5'")]
    app.text_input(key="quick/machine/mean").set_value("0.5, 0.5, 0.5")
    app.text_area(key="quick/machine/class names").set_value("\n".join("abcdefghij"))
    app.button(key="start").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == []
    (run,) = session.store().runs()
    assert run.name == "others (10 classes), mi-fgsm + adam"
    spec = find_model(run.config.model)[1]
    assert (spec.mean, spec.classes) == ((0.5, 0.5, 0.5), tuple("abcdefghij"))
    session.manager().wait(run.id)
    assert session.store().run(run.id).state is RunState.COMPLETE


def test_a_network_that_cannot_be_used_starts_nothing(runs_folder, tmp_path):
    app = page("studio")
    content = checkpoint(tmp_path, image_size=10**9)
    app.file_uploader(key="quick/machine/upload network 0").set_value(("a_b.safetensors", content, "application/octet-stream"))
    app.button(key="start").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == [
        plain("image_size in the header of 'a_b.safetensors' must be an integer from 1 to 1024, got 1000000000")
    ]
    assert session.store().runs() == []
    assert session.uploads().networks() == {}


@pytest.mark.slow
def test_quantize_takes_uploaded_images_without_any_run(runs_folder):
    app = page("quantize", "quantize own/")
    app.multiselect(key="own/quick/bits").set_value([8])
    app.number_input(key="own/quick/steps").set_value(0)
    app.file_uploader(key="own/quick/upload images 0").set_value(("own cats.zip", archive(), "application/zip"))
    app.button(key="quantize own").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == []
    (run,) = session.store().runs()
    assert run.config.methods == ("given",)
    assert run.name == "resnet20_cifar10, own cats.zip, W8A8"
    session.manager().wait(run.id)
    assert session.store().run(run.id).state is RunState.COMPLETE, session.store().run(run.id).traceback
    assert "accuracy/given/W8A8" in session.store().results(run.id)
    # also when it has ended, and for somebody who comes later
    app = page("quantize")
    table = next(frame.value for frame in app.dataframe if "calibrated %" in frame.value)
    assert list(table["images by"]) == ["given"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "got no file"),
        (b"no archive", "begins with b'no archi'"),
        (archive(name="../{}.png"), "'../0.png' leads elsewhere"),
    ],
)
@pytest.mark.parametrize(
    ("name", "uploader", "button"),
    [("quantize", "own/quick/upload images 0", "quantize own"), ("diversity", "own diversity/upload images 0", "measure own")],
)
def test_images_that_cannot_be_used_start_nothing(runs_folder, name, uploader, button, content, reason):
    app = page(name, f"{name} own/")
    if content is not None:
        app.file_uploader(key=uploader).set_value(("a.zip", content, "application/zip"))
    app.button(key=button).click().run()
    assert not app.exception
    (error,) = app.error
    assert plain(reason) in error.value
    assert "must be" in error.value or "must stay" in error.value or "allowed is" in error.value
    assert session.store().runs() == []


@pytest.mark.slow
def test_diversity_of_uploaded_images(runs_folder):
    app = page("diversity", "diversity own/")
    app.file_uploader(key="own diversity/upload images 0").set_value(("cats.zip", archive(), "application/zip"))
    app.button(key="measure own").click().run()
    (run,) = session.store().runs()
    session.manager().wait(run.id)
    app = page("diversity")
    assert [metric.label for metric in app.metric] == ["given images", "noise", "real images"]
    assert app.metric[0].value == "1.000"  # all black
    # such images can be measured and used again as those that a run made
    app.button(key="measure").click().run()
    assert not app.exception
    (again,) = [other for other in session.store().runs() if other.id != run.id]
    assert again.config.images_from == run.config.images_from
    session.manager().wait(again.id)
    assert session.store().result(again.id, "diversity/given") == session.store().result(run.id, "diversity/given")
    newest = quantized_at_8_bits(f"quantize/{again.id}/True")
    session.manager().wait(newest.id)
    assert "accuracy/given/W8A8" in session.store().results(newest.id)
    # it measured no diversity, which the page offers while the images are there
    app = page("diversity")
    assert "open “Measure with another encoder” below" in texts(app)
    assert app.button(key="measure").label == "Measure"
    shutil.rmtree(run.config.images_from)
    app = page("diversity")
    assert "the images that it was given are no longer there" in texts(app)
    assert "measure" not in {button.key for button in app.button}


def test_table_shows_what_a_run_measured_and_opens_it(with_finished_run):
    app = page("paper")
    whole, measured = (frame.value for frame in app.dataframe)
    lines = whole.set_index("row")["measured here"]
    assert len(lines) == 12
    assert lines["imagenet/resnet50/5"] == "not measured"
    assert lines["cifar10/resnet20/4"] != "not measured"
    (line,) = [line for _, line in measured.iterrows() if line["run"] == with_finished_run]
    known = session.store().result(with_finished_run, "accuracy/mi-fgsm/W4A4")
    assert line["top-1 mi-fgsm"] == known["quantized"]
    assert line["drop mi-fgsm"] == pytest.approx(92.1 - known["quantized"])
    assert (
        line["setting"]
        == "quick with images 40, iterations 4, batch_size 20, snapshots 2, steps 3, training batch_size 20, training_lr 0.0005"
    )


def test_table_measures_a_row(runs_folder, monkeypatch):
    went = []  # the page alone knows no other pages to go to
    monkeypatch.setattr(streamlit, "switch_page", lambda page, query_params: went.append((page, query_params)))
    app = page("paper")
    app.selectbox(key="row").set_value("cifar10/resnet20/5").run()
    assert app.selectbox(key="cifar10/resnet20/5/model").value == "resnet20_cifar10"
    app.button(key="measure row").click().run()
    assert not app.exception
    (run,) = session.store().runs()
    session.manager().control(run.id).stop()
    assert went == [("dashboard/pages/studio.py", {"run": run.id})]
    assert run.config.to_dict() == row_config("cifar10/resnet20/5", PRESETS["quick"], "resnet20_cifar10").to_dict()


def test_table_says_what_is_missing_and_starts_nothing(runs_folder):
    app = page("paper")
    app.selectbox(key="row").set_value("imagenet/resnet18/4").run()
    app.button(key="measure row").click().run()
    (error,) = app.error
    assert plain("row 'imagenet/resnet18/4' has no evaluation images: allowed is") in error.value
    assert session.store().runs() == []


@pytest.mark.slow
def test_pages_show_a_run_whose_network_is_gone(runs_folder, tmp_path):
    path = tmp_path / "gone.safetensors"
    checkpoint(tmp_path)
    (tmp_path / "made.safetensors").rename(path)
    model = {"model": str(path)}
    config = replace(SHORT, generation=replace(SHORT.generation, **model), training=replace(SHORT.training, **model))
    run_id = session.manager().start(config.with_knobs({"encoder": "embedded"}))
    session.manager().wait(run_id)
    assert session.store().run(run_id).state is RunState.COMPLETE
    path.unlink()
    for name, number in (("quantize", 0), ("diversity", 3), ("runs", 0)):
        assert len(component(page(name), "figure")) == number
    assert len(component(page("studio"), "sheet")) == 2


def test_a_link_pressed_before_the_page_is_there_keeps_the_run(runs_folder, monkeypatch):
    """As on a slow machine: the script of the first page ends as soon as there are links."""
    asked, newer = (session.store().create(SHORT, name) for name in ("asked for", "newer"))
    for run_id in (asked, newer):
        session.store().set_state(run_id, RunState.COMPLETE)
    app = AppTest.from_file("../../streamlit_app.py", default_timeout=60)
    app.query_params["run"] = asked
    with monkeypatch.context() as slow:
        slow.setattr(streamlit, "navigation", lambda *args, **options: streamlit.stop())
        app.run()
    del app.query_params["run"]
    app.run()
    assert not app.exception, app.exception
    assert "asked for" in texts(app)
    assert "newer" not in texts(app)
