"""`python -m core ...`: the engine without a browser."""

import io
import sys

from core.barriers import share_cores
from core.cli.parser import main
from core.memory import keep_memory

if __name__ == "__main__":
    share_cores()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # as on stderr: Greek letters, or file names that are not UTF-8, where the terminal's encoding lacks them
        sys.stdout.reconfigure(errors="backslashreplace")
    keep_memory()
    raise SystemExit(main())
