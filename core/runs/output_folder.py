"""Copies the files of a run to the folder given by --out, or exports its recommended network to that file."""

import filecmp
import re
import shutil
from pathlib import Path
from typing import Any

from core import layout
from core.errors import DataError, first_line
from core.export.headline import made_networks, recommended, summary
from core.files import check_free, parents_of, remove, sync_tree, temporary_copy_path
from core.reporting import Control, Reporter
from core.runs.run import Run
from core.runs.store import RunStore

# for the dashboard and for resuming, not results
NOT_RESULTS = (layout.FRAMES, layout.CHECKPOINT)


def deliver(store: RunStore, run: Run, reporter: Reporter, control: Control) -> dict[str, Any]:
    """Writes what the command that started the run asked for, whoever computes it; returns figures of that. Raises as the two below."""
    if run.output_subset.partition("/")[0] == layout.RECOMMENDED:
        return export_recommended(store, run, reporter, control)
    export_results(store, run)
    return {}


def export_results(store: RunStore, run: Run) -> None:
    """Copies the run's results, or only `run.output_subset`, to `run.out`: completely or not at all. Does nothing when `run.out` is empty.

    The temporary folder is named after the run, so that a resumed run replaces the one that an interruption left behind.
    Raises DataError when `run.out` exists and is not an empty folder, or cannot be written.
    """
    if not run.out:
        return
    out = Path(run.out)
    source = store.run_folder(run.id) / run.output_subset
    with parents_of(out):
        temporary = temporary_copy_path(out, run.id)
        remove(temporary)
        if out.is_dir() and _same(source, out):
            return  # an earlier attempt was killed after the copy, before the run was marked complete
        check_free(out)
        try:
            shutil.copytree(source, temporary, ignore=lambda folder, names: NOT_RESULTS if Path(folder) == source else ())
            sync_tree(temporary)
            if out.is_dir():
                out.rmdir()
            temporary.rename(out)
        except OSError as error:
            remove(temporary)
            raise DataError(
                f"out must be a writable folder with enough space, got {str(out)!r} ({_reason(error)}): resume the run to copy again"
            ) from error
        except BaseException:
            remove(temporary)
            raise


def export_recommended(store: RunStore, run: Run, reporter: Reporter, control: Control) -> dict[str, Any]:
    """Writes the recommended network of a run to the file `run.out`, in the format that `run.output_subset` names.

    Returns the headline, the recommended bit width, and the path and figures of the file. Raises as `export_network` does.
    """
    from core.export.network import export_network

    networks = made_networks(store.results_of([run.id], ["accuracy"])[run.id])
    chosen = recommended(networks)
    kind = run.output_subset.partition("/")[2]
    config, folder = store.config(run.id), store.run_folder(run.id)
    file = export_network(folder, config, kind, Path(run.out), chosen.method, chosen.bits, reporter, control)
    return {"headline": summary(networks, run.network), "recommended": chosen.bits, "file": file, "out": run.out}


def _reason(error: OSError) -> str:
    """The reason without file names. copytree continues after an error and then raises a list of all errors."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        first = error.args[0][0]  # (source, destination, reason), or only the reason
        return re.sub(r"^\[Errno \d+\] ", "", str(first[-1] if isinstance(first, tuple) else first).split(": '")[0])
    return error.strerror or first_line(error)


def _same(source: Path, out: Path) -> bool:
    """Whether both folders have the same results, byte for byte."""
    names = {path.relative_to(source) for path in source.rglob("*") if path.relative_to(source).parts[0] not in NOT_RESULTS}
    files = [str(name) for name in names if (source / name).is_file()]
    return names == {path.relative_to(out) for path in out.rglob("*")} and filecmp.cmpfiles(source, out, files, shallow=False)[0] == files
