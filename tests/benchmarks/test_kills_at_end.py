"""Runs with --out that are killed between their last computation and their end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_run_is_lost_at_its_end():
    """Kills at lines spread over the window: nothing is computed again, and the copy is complete."""
    command = [sys.executable, "benchmarks/kills_at_end.py", "--kills", "9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["kills"] == 9
    assert outcome["lost"] == {}
