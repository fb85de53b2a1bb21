"""`make test-oldest` installs the lower bounds of requirements.txt, and `install.py` uses a torch that is already installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def bounds(file: str, operator: str) -> dict[str, str]:
    """Name -> version, for lines such as `name>=1.2,<3`."""
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    found = {line: re.match(rf"([\w.-]+){operator}([\w.]+)(,<[\w.]+)?$", line) for line in lines if line}
    assert all(found.values()), [line for line, match in found.items() if not match]
    return {match[1]: match[2] for match in found.values() if match}


def test_oldest_requirements_are_the_lower_bounds():
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in f"{version}.0.0".split(".")[:3])

    lowest = {name: numbers(version) for name, version in bounds("requirements.txt", ">=").items()}
    oldest = {name: numbers(version) for name, version in bounds("requirements-oldest.txt", "==").items()}
    assert oldest == lowest


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """The Python of a virtual environment with one-line dummies of torch and torchvision."""
    folder = tmp_path_factory.mktemp("mine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip())
    for name, version in (("torch", "2.9.1+cu128"), ("torchvision", "0.24.1")):
        (packages / f"{name}.py").write_text(f"__version__ = {version!r}\n", encoding="utf-8")
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (info / "RECORD").write_text("", encoding="utf-8")
    return python


def run(folder: Path, python: Path, wanted: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of `python` in a folder with install.py and these requirements, without a package index."""
    folder.mkdir()
    (folder / "install.py").write_text((ROOT / "install.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "requirements.txt").write_text(wanted, encoding="utf-8")
    alone = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    return subprocess.run([python, *command], cwd=folder, env=os.environ | alone, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize(
    ("wanted", "found"), [("torch>=2.9", "2.9.1+cu128"), ("torch>=2.9.1,<4", "2.9.1+cu128"), ("torch>=2.9.2", ""), ("torch>=2.10", "")]
)
def test_which_torch_is_used(tmp_path, mine, wanted, found):
    result = run(tmp_path / "project", mine, wanted + "\n", "-c", "import install; print(install._torch_of_this_python())")
    assert result.stdout.strip() == found, result.stderr


@pytest.mark.slow  # creates an environment with pip
def test_torch_is_not_installed_again(tmp_path, mine):
    result = run(tmp_path / "project", mine, "torch>=2.9\ntorchvision>=0.24\n", "install.py")
    assert result.returncode == 0, result.stderr
    assert "torch 2.9.1+cu128" in result.stdout
    command = [tmp_path / "project/.venv/bin/python", "-c", "import torch, torchvision; print(torch.__file__)"]
    seen = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    assert Path(seen.strip()).is_relative_to(mine.parents[1])


@pytest.mark.slow  # creates two environments with pip
def test_another_torch_is_installed_if_no_torchvision_matches(tmp_path, mine):
    result = run(tmp_path / "project", mine, "torch>=2.9\ntorchvision>=0.25\n", "install.py")
    assert result.returncode != 0  # another torch cannot be downloaded without an index
    assert "torch 2.9.1+cu128" in result.stderr
    assert "installing another one" in result.stderr
    assert not list((tmp_path / "project/.venv").rglob("packages_of*.pth"))
