"""The Diversity page in Streamlit's AppTest: similarities, nearest neighbors and references."""

from app_pages import component, page, texts

from dashboard import session


def test_diversity_names_its_encoder_and_shows_both_methods(with_finished_run):
    app = page("diversity")
    assert "**embedded**, trained on the 50,000 CIFAR-10 training images" in texts(app)
    assert [metric.label for metric in app.metric] == ["MI\\-FGSM", "Adam", "Noise \\(reference\\)", "Real images \\(reference\\)"]
    assert "512 of the first 600 CIFAR-10 test images" in texts(app)
    assert len(component(app, "figure")) == 3
    bodies = [element.proto.body for element in app.get("html")]
    # for each method: pairs in rows of four, an image with its nearest neighbors, and sample images
    nearest = [body for body in bodies if "its nearest neighbors" in body]
    assert ["image 0 by MI-FGSM" in nearest[0], "image 0 by Adam" in nearest[1], len(nearest)] == [True, True, 2]
    pairs = [session.store().result(with_finished_run, f"diversity/{method}")["neighbours"]["pairs"] for method in ("mi-fgsm", "adam")]
    rows = sum(max(1, len(own) // 4) for own in pairs)  # only full rows
    assert len([body for body in bodies if "most similar pairs" in body]) == rows
    assert len([body for body in bodies if "data:image/png" in body]) == rows + 4
    app.select_slider(key=f"neighbors of/{with_finished_run}").set_value(21).run()
    assert not app.exception
    assert app.query_params["neighbors"] in ("21", ["21"])
    again = [element.proto.body for element in app.get("html") if "its nearest neighbors" in element.proto.body]
    assert "image 21 by MI-FGSM" in again[0]
    assert again[0] != nearest[0]


def test_diversity_of_a_run_from_an_earlier_version_has_no_references(with_finished_run):
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
    assert "No real images for reference: no image fits." in texts(app)


def test_an_unknown_encoder_is_refused_at_its_field_and_starts_nothing(with_finished_run):
    app = page("diversity")
    app.text_input(key="diversity/encoder").set_value("nonsense")
    app.button(key="measure").click().run()
    (error,) = app.error
    assert "nonsense" in error.value
    assert "embedded" in error.value
    assert app.button(key="measure").disabled
    assert len(session.store().runs()) == 1
