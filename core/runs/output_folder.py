"""A run's files where the command line was asked to put them."""

import filecmp
import shutil
from pathlib import Path

from core import layout
from core.errors import DataError, first_line
from core.files import check_free, parents_of, remove, sync_tree, temporary_copy_path
from core.runs.store import Run, RunStore

# for the pages and for going on, not for a person who wants the results
NOT_RESULTS = (layout.FRAMES, layout.CHECKPOINT)


def copy_out(store: RunStore, run: Run) -> None:
    """Copies the run's results, or the part of it that was asked for, to `run.out`, whole or not at all; nothing when none was named.

    The temporary name is the run's own, so that a run that is resumed finds and replaces what a kill left there.
    Raises DataError when `run.out` exists and is not an empty folder, or cannot be written.
    """
    if not run.out:
        return
    out = Path(run.out)
    source = store.run_folder(run.id) / run.part
    with parents_of(out):
        temporary = temporary_copy_path(out, run.id)
        remove(temporary)
        if out.is_dir() and _same(source, out):
            return  # the run was killed between this and the word that it is complete
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
                f"the results could not be copied to {str(out)!r} ({_reason(error)}): "
                "allowed is a folder with room that can be written to, resume the run to try again"
            ) from error
        except BaseException:
            remove(temporary)
            raise


def _reason(error: OSError) -> str:
    """What was wrong, without the names of files: copytree goes on after an error, and raises a list of all."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        first = error.args[0][0]  # (from, to, what was wrong), or only the last
        return str(first[-1] if isinstance(first, tuple) else first).split(": '")[0]
    return error.strerror or first_line(error)


def _same(source: Path, out: Path) -> bool:
    """Whether the results in both folders are the same, to the byte."""
    names = {path.relative_to(source) for path in source.rglob("*") if path.relative_to(source).parts[0] not in NOT_RESULTS}
    files = [str(name) for name in names if (source / name).is_file()]
    return names == {path.relative_to(out) for path in out.rglob("*")} and filecmp.cmpfiles(source, out, files, shallow=False)[0] == files
