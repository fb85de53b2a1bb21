"""A stored run as it was read, and how a row of the database becomes one."""

import functools
import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.config import DATA_NAMES, RunConfig
from core.errors import ConfigError, RunError, first_line, quoted
from core.models.registry import NETWORK_SUFFIXES, own_name
from core.runs.places import each_text, located, portable
from core.runs.state import RunState

DAYS_IN_TRASH = 7
# limits of what people write about a run
NAME_CHARACTERS = 200
NOTE_CHARACTERS = 4000
TAG_CHARACTERS = 40
TAGS = 20
# for SQL: the states of each kind, and the runs that lists show
UNFINISHED = ", ".join(f"'{state}'" for state in RunState if not state.is_finished())
FINISHED = ", ".join(f"'{state}'" for state in RunState if state.is_finished())
RESUMABLE = ", ".join(f"'{state}'" for state in RunState if state.can_resume())
LISTED = "NOT deleted AND trashed IS NULL"
CLUSTER = "cluster"  # the result that a run on a cluster has: {"nodes": the addresses of those that computed it, in their order}
OF_THIS_MACHINE = f"NOT EXISTS (SELECT 1 FROM result WHERE result.run = run.id AND result.name = '{CLUSTER}')"


@dataclass(frozen=True)
class Run:
    """One run as it was when it was read. All times are seconds since the epoch."""

    id: str
    name: str
    network: str  # its name for people, see `own_name`
    config: RunConfig
    state: RunState
    created: float
    started: float | None
    ended: float | None
    error: str
    traceback: str
    stage: str
    stage_started: float | None  # or when it was resumed, or continued after a pause
    step: int
    total: int
    stage_done: int  # steps of the stage that were taken before `stage_started`: before the run was resumed, or continued after a pause
    attempt: int  # 1, plus one for each time the run was resumed
    user: str  # who started it, if the dashboard has logins
    out: str  # --out of the command line: the folder, or the file of the recommended network, that is exported at the end
    output_subset: str  # the subfolder of the run that is exported, or RECOMMENDED/FORMAT; empty: all results
    note: str  # free text
    tags: tuple[str, ...]  # sorted, without duplicates
    pinned: bool  # whether it is the baseline that others are compared with; at most one run is
    trashed: float | None  # when it was moved to the trash
    parent: str = ""  # id of the run that a branch belongs to; empty: it is no branch
    branch_at: int = 0  # the last step that a branch shares with its run


# fields of a Run whose column has the same name and needs no conversion; database columns keep the names they were created with
_PLAIN_COLUMNS = (
    "id", "name", "network", "created", "started", "ended", "traceback", "stage", "stage_started", "step", "total", "stage_done", "attempt",
    "user", "note", "trashed", "parent", "branch_at",
)  # fmt: skip


def run_of_row(row: sqlite3.Row, folder: Path) -> Run:
    """The run of a row of table `run`. folder: the runs folder.

    A config that this version cannot read is replaced by the defaults and reported in `error`, so that one run written by another
    version does not hide the others.
    """
    error = row["error"]
    try:
        config = config_of_row(row, folder)
    except ConfigError as problem:
        config, error = RunConfig(), f"this version cannot read the settings of this run and shows the defaults instead ({problem})"
    plain: Mapping[str, Any] = {name: row[name] for name in _PLAIN_COLUMNS}
    return Run(
        config=config,
        error=error,
        state=RunState(row["state"]),
        out=located(row["out"], folder),
        output_subset=row["part"],
        tags=tuple(row["tags"].split("\n")) if row["tags"] else (),
        pinned=bool(row["pinned"]),
        **plain,
    )


def config_of_row(row: sqlite3.Row, folder: Path) -> RunConfig:
    """The config of a row, with the paths where they are now.

    Raises ConfigError for one that this version cannot read, whatever another version wrote there.
    """
    try:
        return _read_config(row["config"], folder)
    except ConfigError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"the stored settings of run {row['id']!r} must be those of a run, but are not ({first_line(error)})") from error


# cached because validating every field takes longer than all other work of reading a run; a page reads some hundred runs at most
@functools.lru_cache(maxsize=1000)
def _read_config(text: str, folder: Path) -> RunConfig:
    return RunConfig.from_dict(each_text(json.loads(text), lambda path: located(path, folder)))


def searched_columns(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Column -> value, of the columns that repeat parts of a config for SQL to find (see lists.py). Lists have a line for each entry."""
    return {
        "model": portable(config.model, folder),
        "network": own_name(config.model),
        "data": portable(config.evaluation.data, folder),
        "images_from": portable(str(Path(config.images_from)), folder) if config.images_from else "",
        "methods": "\n".join(config.methods),
        "widths": "\n".join(config.training_for(bits).width for bits in config.bits),
        "mixed": int(config.training.mixed),
    }


def require_listed(row: sqlite3.Row | None, run_id: str) -> sqlite3.Row:
    """The row itself. Raises RunError when the run does not exist (None) or is in the trash."""
    if row is None:
        raise unknown_run(run_id)
    if row["trashed"] is not None:
        raise RunError(f"run {run_id!r} was deleted: it must be restored first, under Runs, within {DAYS_IN_TRASH} days")
    return row


def unknown_run(run_id: str) -> RunError:
    """The error for an id that does not exist."""
    return RunError(f"run {quoted(run_id)} does not exist: the id must be one listed under Runs")


def check_length(what: str, value: str, most: int) -> None:
    """Raises RunError when `value` has more than `most` characters."""
    if len(value) > most:
        raise RunError(f"{what} must have at most {most:,} characters, got {len(value):,} in {quoted(value)}")


def stored_config(config: RunConfig, folder: Path) -> str:
    """The text of column `config`."""
    return portable_text(json.dumps(config.to_dict()), folder)


def portable_text(text: str, folder: Path) -> str:
    """JSON with the paths below the runs folder in their stored form, see places.py. Raises ValueError for any other text."""
    return json.dumps(each_text(json.loads(text), lambda path: portable(path, folder)))


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The config with every path made absolute, so that the run can be resumed from any folder."""

    def absolute(name: str) -> str:
        return str(Path(name).absolute()) if name and os.path.exists(name) else name

    data = config.evaluation.data
    architecture, colon, file = config.evaluation.encoder.partition(":")
    return replace(
        config,
        model=absolute(config.model) if config.model.endswith(NETWORK_SUFFIXES) else config.model,
        evaluation=replace(
            config.evaluation,
            data=data if data in DATA_NAMES else absolute(data),
            # a name of open_clip's weights has no suffix
            encoder=architecture + colon + (absolute(file) if Path(file).suffix else file),
        ),
        generation=replace(config.generation, real_images=absolute(config.generation.real_images)),
        images_from=absolute(config.images_from),
    )
