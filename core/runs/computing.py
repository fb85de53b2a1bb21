"""The other end of process.py: `python -m core.runs.computing FOLDER` computes the runs that its server hands over."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from core.errors import CoreError, RunError
from core.memory import keep_memory
from core.runs.manager import RunManager
from core.runs.store import RunStore


def main(folder: Path) -> None:
    """Computes what it is told to until its standard input ends."""
    up = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no message
    keep_memory()
    manager = RunManager(RunStore(folder))
    current = ""

    def announce(run_id: str) -> None:
        manager.wait(run_id)
        print(json.dumps({"ended": run_id}), file=up, flush=True)

    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "run" in message:
                current = message["run"]
                manager.take_over(current, message["owner"])
                threading.Thread(target=announce, args=(current,), daemon=True).start()
            elif "set" in message:
                manager.control(current).set(*message["set"])
            else:
                getattr(manager.control(current), message["do"])()
        except RunError:
            if "run" in message:
                print(json.dumps({"ended": current}), file=up, flush=True)  # taken by another, or gone
            # and a run that has ended meanwhile needs no control
        except CoreError as error:
            print(error, file=sys.stderr)
    os._exit(0)  # whatever its threads are at: the server is gone


if __name__ == "__main__":
    main(Path(sys.argv[1]))
