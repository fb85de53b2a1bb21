"""The stage that generates images: what it says about them."""

from dataclasses import replace

from core.config import GenerationConfig, RunConfig
from core.reporting import NoControl
from core.stages.context import Context
from core.stages.generation import generate
from tests.core.recorded_runs import Recorder


def test_statistics_that_do_not_match_are_no_news_of_a_method_with_a_loss_of_its_own(small):
    generation = GenerationConfig(images=8, iterations=2, batch_size=8, snapshots=1)
    config = replace(RunConfig(methods=("mi-fgsm", "adam", "zeroq", "gdfq"), bits=()), generation=generation)
    recorder = Recorder()
    generate(small, config, Context(recorder, NoControl()))
    warned = {name.removeprefix("warning/statistics/") for name in recorder.results if name.startswith("warning/")}
    assert warned == {"mi-fgsm", "adam"}
