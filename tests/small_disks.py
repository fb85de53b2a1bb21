"""A small disk that can be filled, made read-only and enlarged; where none can be mounted, tests with it are skipped."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory, mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave: int = 0) -> None:
        """Fills the disk with another file until `leave` bytes are free."""
        with (self.folder / "someone-else.bin").open("ab") as file:
            while (free := shutil.disk_usage(self.folder).free) > leave:
                file.write(bytes(min(free - leave, 1 << 16)))
                file.flush()

    def remount(self, options: str) -> None:
        """Changes the mount options, such as `size=64m` or `ro`."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)


@contextmanager
def mounted(folder: Path, megabytes: int = 3) -> Iterator[SmallDisk]:
    """A new disk at `folder` during the block."""
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk takes root on Linux")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        gc.collect()  # a reference cycle with the frames of an expected exception may keep a file mapped
        if subprocess.run(["umount", folder]).returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)
            raise AssertionError("a file of the disk was still open")
