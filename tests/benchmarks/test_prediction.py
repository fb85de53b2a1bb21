import xml.etree.ElementTree as ElementTree

from benchmarks.prediction import judged, scatter


def points(network, factor):
    """Quantized networks whose drop follows the equation up to a factor."""
    return [
        {
            "network": network,
            "agreement": 100 - 400 * noise**2,
            "kl": noise**2,
            "score_sqnr": 20.0 - 40 * noise,
            "drop": factor * 100 * noise**2,
        }
        for noise in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
    ]


def test_no_network_is_predicted_with_its_own_points():
    measured = [*points("a", 1.0), *points("b", 1.0), *points("c", 9.0)]
    alone, all_of_them = judged(measured[:12]), judged(measured)
    assert alone["median_error_below_5"] < 0.5
    of_c = [point for point in all_of_them["points"] if point["network"] == "c" and "predicted" in point]
    assert of_c[-1]["predicted"] < of_c[-1]["drop"] / 3  # as the other two have it
    assert all_of_them["count"] == 18
    assert 0 <= all_of_them["inside_the_interval"] <= 1


def test_picture_has_a_point_for_each_prediction():
    result = judged([*points("a", 1.0), *points("b", 1.0)])
    root = ElementTree.fromstring(scatter(result["points"]))
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(circles) == result["predicted"] + 2  # and the legend
