"""Stage: CLIP diversity of the images, and of what they are compared with."""

from collections.abc import Mapping
from typing import Any

from core.config import EVALUATION_SETS, RunConfig
from core.data.class_names import evaluation_source
from core.data.image_sets import ImageSet
from core.data.labeled import EvaluationSet, load_evaluation_set
from core.errors import DataError
from core.evaluation.diversity import CHART_DATA, measure_diversity
from core.evaluation.encoder import Encoder
from core.evaluation.references import NOISE, REAL, noise_images, real_images
from core.models.full_precision import FullPrecisionModel
from core.stages.context import Context

REFERENCES = {NOISE: "noise", REAL: "real images"}  # what the diversity of synthetic images is compared with


def diversity(sets: Mapping[str, ImageSet], encoder: Encoder, context: Context) -> dict[str, dict[str, Any]]:
    """CLIP similarity of each set. Name -> figures."""
    measured = {}
    for name, image_set in sets.items():
        context.reporter.stage(f"diversity of {name}", 0)
        measured[name] = measure_diversity(image_set, encoder, pause_point=context.control.pause_point)
        context.reporter.result(f"diversity/{name}", measured[name])
    return measured


def reference_diversity(
    name: str, model: FullPrecisionModel, config: RunConfig, evaluation_set: EvaluationSet | None, encoder: Encoder, context: Context
) -> dict[str, Any]:
    """The diversity of one of REFERENCES; {"left_out": why} where its images are not available."""
    context.reporter.stage(f"diversity of {REFERENCES[name]}", 0)
    try:
        if name == NOISE:
            images = noise_images(model, config.generation, config.machine.seed)
        else:
            images = real_images(evaluation_set or _real_set(model, config))
        measured = measure_diversity(images, encoder, pause_point=context.control.pause_point, keep_matrices=False)
        measured["description"] = images.manifest["description"]
    except DataError as error:  # nothing else in the run depends on it
        measured = {"left_out": str(error)}
    context.reporter.result(f"reference/{name}", measured)
    return measured


def _real_set(model: FullPrecisionModel, config: RunConfig) -> EvaluationSet:
    """Real images for a run that is not evaluated. Raises DataError where there are none, rather than download any."""
    source = evaluation_source(config.evaluation.data, model.spec)
    if source is None:
        raise DataError("data must name real images for a reference, and this run has none")
    named = "embedded" if source in EVALUATION_SETS else source
    return load_evaluation_set(named, model.spec, strict=config.evaluation.strict)


def without_charts(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a measured diversity without those that only charts need."""
    return {name: value for name, value in measured.items() if name not in CHART_DATA}
