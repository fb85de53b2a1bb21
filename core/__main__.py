"""`python -m core ...`: the engine without a browser."""

from core.cli.parser import main
from core.memory import keep_memory

if __name__ == "__main__":
    keep_memory()
    raise SystemExit(main())
