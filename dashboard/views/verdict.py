"""What a run has shown about its methods, in sentences with figures. Reads the store only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from core.comparison import verdict, words
from core.evaluation.answers import ANSWERS
from core.evaluation.hits import HITS
from core.runs.run import Run
from dashboard import session, text
from dashboard.components import elements
from dashboard.names import method_name
from dashboard.tables import results
from dashboard.updates.live_view import Values

_CHARACTERS = 36  # of a line beside the images
_NETWORKS = ("accuracy", HITS, ANSWERS)  # kinds of results that verdicts on networks read


def values(run: Run) -> Values:
    """Of a Studio: the generation so far, diversity, and networks. Computed once for each complete batch and each new result."""
    iterations, records = run.config.generation.iterations, session.records(run, "generation")
    batches = sum(record.step % iterations == 0 for record in records)
    key = ("verdict", run.id, run.attempt, batches, version(run), run.state)

    def sentences() -> list[str]:
        found = verdict.of_generation(records, iterations, verdict.compared(run.config.methods))
        return words.sentences([*found, *_diversity(run), *_quantization(run)], method_name)

    lines = [f"{line}." for line in session.shared_cache(key, sentences)]
    if not lines and not run.state.is_finished():
        lines = ["The methods are compared here after each batch."]
    return {_key(run): elements.text_block_data(lines)}


def version(run: Run) -> tuple[str, ...]:
    """Version key: changes with the results that verdicts are about. Of those of a network, its answers are stored last."""
    return tuple(name for name in session.store().result_names(run.id) if name.partition("/")[0] in ("diversity", ANSWERS))


def draw(run: Run, values: Mapping[str, Any]) -> None:
    """The sentences of `values`."""
    if values[_key(run)]["lines"]:
        elements.text_block(_key(run), values[_key(run)], width=_CHARACTERS)


def _key(run: Run) -> str:
    return f"verdict/{run.id}"


def draw_diversity(run: Run) -> None:
    """The sentence about diversity."""
    key = ("verdict", "diversity", run.id, run.attempt, version(run))
    _draw(session.shared_cache(key, lambda: words.sentences(_diversity(run), method_name)))


def draw_networks(run: Run) -> None:
    """Sentences about the networks; and which of them their training made worse."""
    stored = session.store().results_of([run.id], _NETWORKS).get(run.id, {})
    lines = words.sentences(verdict.of_quantization(stored), method_name)
    for name, answers in stored.items():
        kind, _, rest = name.partition("/")
        before = verdict.of_training(answers) if kind == ANSWERS else None
        if before is not None and before.value > 0 and before.is_ahead:
            method, _, width = rest.partition("/")
            lines.append(words.training_lowered(width, method, before, method_name))
    _draw(lines)


def draw_table(key: tuple, found: Callable[[], list[verdict.Finding]]) -> None:
    """Sentences about findings that are computed once for each key."""
    _draw(session.shared_cache(("verdict", *key), lambda: words.sentences(found(), method_name)))


def _draw(lines: list[str]) -> None:
    if lines:
        st.markdown("  \n".join(f"{text.plain(line)}." for line in lines))


def _diversity(run: Run) -> list[verdict.Finding]:
    measured = results.diversities(session.store().results_of([run.id], ["diversity"]).get(run.id, {}))
    found = verdict.of_similarity({name: measured[name] for name in verdict.compared(list(measured))})
    return [] if found is None else [found]


def _quantization(run: Run) -> list[verdict.Finding]:
    return verdict.of_quantization(session.store().results_of([run.id], _NETWORKS).get(run.id, {}))
