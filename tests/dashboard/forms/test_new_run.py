"""The form for starting an earlier run again returns exactly the settings of that run."""

from dataclasses import replace

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from core.config import PRESETS, SECTIONS, EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.models.registry import ASSETS
from core.runs.records import Records
from core.runs.state import RunState
from dashboard import session
from dashboard.text import plain

MODEL = "timm:resnet18.a1_in1k"
CONFIGS = {
    "defaults": RunConfig(),
    "quick": PRESETS["quick"],
    "paper": PRESETS["paper"],
    "everything else than the defaults": RunConfig(
        model=MODEL,
        machine=MachineConfig(seed=2**31 - 1, device="cpu", threads=3, budget=12.5, compile=True, gpu_share=0.25),
        training_seed=5,
        generation=GenerationConfig(
            images=30,
            iterations=77,
            batch_size=7,
            snapshots=3,
            burn_in=0.123456789,
            half_resolution_fraction=0.1,
            noise="white",
            epsilon=0.0012345678,
            mu=1.7,
            lr=0.6180339887,
            schedule="constant",
            alpha_tv=1.234567891e-05,
            alpha_l2=0.0,
            beta=33.3333333,
            max_shift=3,
            flip=True,
            bns_form="norms",
            patience=7,
            shard_size=11,
            zeroq_lr=0.123456789,
            dsg_lr=0.23456789,
            dsg_slack=0.8123456789,
            dsg_sci=1.123456789,
            dsg_beta=2.123456789,
            dsg_tv=0.0123456789,
            dsg_l2=0.0234567891,
            generator_batch_size=9,
            generator_lr=0.0123,
            alpha_bns=0.77,
            latent=11,
            conditioning="batch-norm",
            superposed_share=0.35,
            superposed_classes=3,
            alpha_relations=0.9,
            alpha_activation=0.21,
            student_steps=2,
            intraq_lr=0.3456789,
            intraq_beta=3.123456789,
            intraq_crop=0.25,
            intraq_area=0.75,
            intraq_target=0.6,
            intraq_near=0.02,
            intraq_far=1.5,
            hast_lr=0.5,
            hast_beta=0.123456789,
            hast_gamma=0.5,
            hard_crop=0.5,
            plf_lr=0.5,
            plf_beta=1.123456789,
            synq_lr=0.5,
            synq_beta=1.123456789,
            synq_gamma=1.5,
            texq_share=0.125,
            texq_lr=0.0123456789,
            texq_guidance=2.123456789,
            texq_near=0.123456789,
            texq_far=0.623456789,
            texq_noise=0.0,
            adaptive_bns=0.323456789,
            adaptive_agreement=0.423456789,
            adaptive_high=0.623456789,
            adadfq_disagreement=0.523456789,
            adadfq_low=0.223456789,
            adasg_disagreement=0.423456789,
            adasg_low=0.123456789,
            genie_latent_lr=0.223456789,
            genie_generator_lr=0.0323456789,
            genie_swing=False,
            real_images=str(ASSETS),
        ),
        training=TrainingConfig(
            weight_bits=2,
            activation_bits=7,
            range="mse",
            symmetric_weights=True,
            first_last_8bit=True,
            steps=123457,
            training_batch_size=5,
            training_optimizer="sgd",
            training_lr=1.23456789e-07,
            alpha_ce=0.1234567,
            alpha_kd=0.0,
            alpha_feature=999.9,
            temperature=0.1,
            ema_decay=0.9999,
            crop_padding=0,
            training_flip=False,
            cutmix=0.5,
            keep="trained",
            protocol="authors",
            alpha_attention=1.5,
            perturbation=0.0,
            plf_features=0.25,
            low_pass=8.5,
            alpha_cam=0.0,
            synq_easy=0.7,
            training_weight_decay=0.123,
            flip_share=0.0123,
            calibration_images=1,
            layer_bits=(("a.layer", 6), ("b*", 2)),
            correct_statistics=False,
            size=140.5,
            layer_weight_bits=(("a.layer", 3),),
        ),
        methods=("adam", "mi-fgsm"),
        bits=(8, 2),
        steps_by_bits={2: 11, 6: 12},
        lr_by_bits={8: 1e-09},
        evaluation=EvaluationConfig(encoder="ViT-B-32:laion2b_s34b_b79k", data=str(ASSETS), accuracy_checks=7, strict=True),
    ),
    "no quantization, no encoder": RunConfig(bits=(), methods=("adam",), evaluation=EvaluationConfig(encoder="")),
    "given images": RunConfig(images_from=str(ASSETS), methods=("given", "a_method of *others*"), bits=(4,), lr_by_bits={4: 0.0001}),
}


def finished(config, name="a *run*") -> str:
    run_id = session.store().create(config, name)
    session.store().set_state(run_id, RunState.COMPLETE)
    return run_id


def studio(**query):
    app = AppTest.from_file("../../../dashboard/pages/studio.py", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


@pytest.mark.parametrize("name", CONFIGS)
def test_form_returns_the_settings_of_the_earlier_run(started, name, monkeypatch):
    went = []  # a page opened alone cannot switch to another
    monkeypatch.setattr(streamlit, "switch_page", lambda page, query_params: went.append(page))
    run_id = finished(CONFIGS[name])
    app = studio(**{"from": run_id})
    assert [option.split(":")[0] for option in app.selectbox(key=f"preset/{run_id}").options] == ["as a *run*", *PRESETS]
    app.button(key="start").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == []
    assert started == [session.store().config(run_id)]
    assert "from" not in app.query_params
    assert went == (["dashboard/pages/quantize.py"] if CONFIGS[name].images_from else [])


def test_every_field_differs_somewhere_from_its_default():
    """Otherwise the test above would miss a field that the form drops."""
    other, defaults = CONFIGS["everything else than the defaults"].to_dict(), RunConfig().to_dict()
    assert other.pop("training_seed") is not None  # None is not stored
    other["images_from"] = CONFIGS["given images"].images_from
    same = [name for part in SECTIONS for name in defaults[part] if other[part][name] == defaults[part][name]] + [
        name for name in defaults if other[name] == defaults[name]
    ]
    assert same == []


def test_form_changes_only_edited_settings(started):
    config = CONFIGS["everything else than the defaults"]
    run_id = finished(config)
    app = studio(**{"from": run_id})
    app.select_slider(key=f"new/from/{run_id}/alpha_l2").set_value(0.03)
    app.run()
    app.number_input(key=f"from/{run_id}/generation/iterations").set_value(78)
    app.number_input(key=f"from/{run_id}/steps").set_value(9)
    app.button(key="start").click().run()
    assert not app.exception
    assert started == [
        replace(
            config,
            generation=replace(config.generation, alpha_l2=0.03, iterations=78),
            training=replace(config.training, steps=9),
            steps_by_bits={},
        )
    ]


def test_a_preset_can_be_chosen_instead(started):
    run_id = finished(CONFIGS["no quantization, no encoder"])
    app = studio(**{"from": run_id})
    app.selectbox(key=f"preset/{run_id}").set_value("paper").run()
    assert not app.exception
    assert "from" not in app.query_params
    assert app.selectbox(key="preset").value == "paper"
    app.button(key="start").click().run()
    assert [config.to_dict() for config in started] == [PRESETS["paper"].to_dict()]


def repeats(app):
    return [box for box in app.checkbox if box.key.endswith("/repeat")]


@pytest.mark.parametrize("repeat", [False, True])
def test_live_changes_of_the_earlier_run_are_repeated_on_request(started, repeat):
    run_id = finished(CONFIGS["no quantization, no encoder"])
    session.store().add_change(run_id, "adam", 3, "beta", 0.5)
    session.store().add_change(run_id, "mi-fgsm", 3, "beta", 0.5)
    assert repeats(studio()) == []
    app = studio(**{"from": run_id})
    (box,) = repeats(app)
    assert (box.label, box.value) == (plain("Repeat the live changes of that run: Labels β"), False)
    box.set_value(repeat).run()
    app.multiselect(key=f"from/{run_id}/methods").set_value(["adam"]).run()
    app.button(key="start").click().run()
    assert not app.exception
    (again,) = [run for run in session.store().runs() if run.id != run_id]
    wanted = [{"method": "adam", "step": 3, "name": "beta", "value": 0.5}]
    assert Records(session.store().database).past(again.id) == (wanted if repeat else [])
    assert session.store().changes(again.id) == []  # not made yet


def test_the_form_shows_why_settings_cannot_be_read_and_offers_the_presets(started):
    run_id = finished(RunConfig())
    with session.store().database.write() as connection:
        connection.execute("UPDATE run SET config = '{\"new\": 1}' WHERE id = ?", (run_id,))
    app = studio(**{"from": run_id})
    assert plain("unknown knob 'new': must be one of") in app.error[0].value
    assert app.selectbox(key="preset").value == "quick"
    app = studio(**{"from": "<b>nobody"})
    assert app.error[0].value == plain("run '<b>nobody' does not exist: the id must be one listed under Runs")
    session.store().trash.put(run_id)
    assert plain("was deleted: it must be restored first") in studio(**{"from": run_id}).error[0].value
