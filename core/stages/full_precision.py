"""Stage: accuracy of the full-precision network."""

from core.data.labeled import EvaluationSet
from core.evaluation.accuracy import Accuracy, evaluate
from core.models.full_precision import FullPrecisionModel
from core.stages.context import Context


def measure_full_precision(model: FullPrecisionModel, evaluation_set: EvaluationSet, context: Context) -> Accuracy:
    """Top-1 of the full-precision network."""
    context.reporter.stage("evaluating full precision", 0)
    accuracy = evaluate(model.network, model, evaluation_set, pause_point=context.control.pause_point)
    figures = {"top1": accuracy.top1, "standard_error": accuracy.standard_error, "evaluated_on": accuracy.evaluated_on}
    context.reporter.result("full_precision", figures)
    return accuracy
