"""The run that a page shows; records as pages read them: only new ones, and those that a resumed run dropped are forgotten."""

from core.config import RunConfig
from core.runs.state import RunState
from dashboard import session


def test_records_that_a_resumed_run_computes_again_are_shown_once(with_finished_run):
    store = session.store()
    run = store.run(with_finished_run)
    assert [record.step for record in session.records(run, "generation") if record.series == "adam"] == [1, 2, 3, 4]
    # a page reads between the resume and the moment when the engine drops what follows its resume state
    for series in ("mi-fgsm", "adam"):
        store.rewind(run.id, "generation", series, 2)
    store.append(run.id, "generation", "adam", 3, {"total": 7.0})
    steps = [(record.series, record.step, record.data["total"]) for record in session.records(run, "generation")]
    assert [step for series, step, _ in steps if series == "adam"] == [1, 2, 3]
    assert ("adam", 3, 7.0) in steps
    store.append(run.id, "generation", "mi-fgsm", 3, {"total": 8.0})
    steps = [(record.series, record.step) for record in session.records(run, "generation")]
    assert sorted(steps) == sorted((series, step) for series in ("mi-fgsm", "adam") for step in (1, 2, 3))


def test_a_page_without_a_run_in_its_address_shows_the_last_one_that_did_not_fail(runs_folder):
    store = session.store()
    complete, failed = (store.create(RunConfig(), name) for name in ("complete", "failed"))
    assert session.shown_run().id == failed  # queued
    store.set_state(complete, RunState.COMPLETE)
    store.set_state(failed, RunState.FAILED, "a reason")
    assert session.shown_run().id == complete
    store.delete(complete)
    assert session.shown_run().id == failed
