"""The command `branch`: a run goes on from one of its iterations with other values."""

from argparse import Namespace
from typing import Any

from core.cli.commands import compute
from core.cli.progress import Progress


def branch(options: Namespace) -> dict[str, Any]:
    """Computes a branch in this process. Returns its ID as `run`, its name, and the last L_BNS of each method."""
    from core.runs.branches import create_branch
    from core.runs.store import RunStore

    with Progress() as progress:
        store = RunStore(options.runs)
        try:
            branch_id = create_branch(store, options.run, options.at, dict(options.values))
            name = store.run(branch_id).name
        except BaseException:
            store.close()
            raise
        return {"name": name, **compute(store, branch_id, progress)}
