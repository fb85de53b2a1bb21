"""Stage: the full-precision network on the evaluation images."""

from pathlib import Path

from core.data.labeled import EvaluationSet
from core.evaluation.accuracy import Accuracy
from core.evaluation.real import RealScores
from core.evaluation.real import measure_full_precision as measure
from core.models.full_precision import FullPrecisionModel
from core.stages.context import Context

_SCORES = "full-precision scores.safetensors"


def measure_full_precision(model: FullPrecisionModel, evaluation_set: EvaluationSet, context: Context, folder: Path) -> Accuracy | None:
    """Top-1 of the full-precision network, None without labels. Its scores are kept in `folder`, for `real_scores`."""
    context.reporter.stage("evaluating full precision", 0)
    accuracy, scores = measure(model, evaluation_set, context.control.pause_point)
    folder.mkdir(parents=True, exist_ok=True)
    scores.save(folder / _SCORES)
    if accuracy is not None:
        figures = {"top1": accuracy.top1, "standard_error": accuracy.standard_error, "evaluated_on": accuracy.evaluated_on}
        context.reporter.result("full_precision", figures)
    return accuracy


def real_scores(model: FullPrecisionModel, evaluation_set: EvaluationSet, context: Context, folder: Path) -> RealScores:
    """The scores that `measure_full_precision` has kept; computed again where an earlier version kept none, or the images are others."""
    found = RealScores.load(folder / _SCORES, model, evaluation_set)
    if found is None:
        context.reporter.stage("evaluating full precision", 0)
        _, found = measure(model, evaluation_set, context.control.pause_point)
        found.save(folder / _SCORES)
    return found
