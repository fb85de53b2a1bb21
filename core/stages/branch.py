"""Stage: a branch of a run, which computes one batch again and goes on from one of its iterations with other live values."""

from typing import Any

from core.config import RunConfig
from core.generation.loop import GenerationLoop
from core.memory import memory_advice
from core.models.full_precision import FullPrecisionModel
from core.stages.context import Context
from core.stages.generation import STAGE


class _BranchLoop(GenerationLoop):
    """The loop of the batch that has step `at`, counted from 1 over all batches, from the first step that its bits depend on to its end.

    Saves no images, and keeps frames only of steps after `at`.
    """

    def __init__(self, at: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        batch = (at - 1) // self.config.iterations
        self.end = (batch + 1) * self.config.iterations
        self._kept = frozenset((*(step for step in self._kept if at < step < self.end), self.end))
        if self.source.batches_are_independent:
            self.go_to_batch(batch)
        self.first = self.step_count

    @property
    def finished(self) -> bool:
        return self.step_count >= self.end

    def _save_due(self, iteration: int) -> None:
        for _ in self.source.to_save(iteration, is_last=False):
            pass  # a branch is only looked at, but a source may change something here

    @property
    def last_bns(self) -> float:
        """L_BNS of the last step."""
        return sum(self._last[-1])


def branched(model: FullPrecisionModel, config: RunConfig, at: int, context: Context) -> dict[str, Any]:
    """Computes the branch that leaves its run after step `at`; `context.control` supplies its live values, those of the run before it too.

    Returns the last L_BNS of each method.
    """
    reporter = context.reporter
    with memory_advice("the generation", "batch_size", config.generation.batch_size, least=2):
        loops = [_BranchLoop(at, model, config.generation, method, config.machine, reporter, context.control) for method in config.methods]
        reporter.result("layers", loops[0].layer_names)
        reporter.result("terms", list({term["name"]: term for loop in loops for term in loop.terms()}.values()))
        if state := context.saved_state(STAGE):
            for loop in loops:
                loop.load_state(state[loop.method])
        for loop in loops:
            reporter.rewind(STAGE, loop.method, loop.step_count)
        reporter.stage(STAGE, sum(loop.end - loop.first for loop in loops), sum(loop.step_count - loop.first for loop in loops))
        while any(not loop.finished for loop in loops):
            context.between_steps(STAGE, lambda: {loop.method: loop.state() for loop in loops})
            for loop in loops:
                if not loop.finished:
                    loop.step()
    return {"branch_at": at, "bns_loss": {loop.method: loop.last_bns for loop in loops}}
