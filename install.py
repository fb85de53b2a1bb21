"""Makes the environment that `make` runs in, `.venv`, by the Python that it is to have: `python3 install.py`.

Where that Python already has a torch that requirements.txt allows, `.venv` sees its packages behind its own, so that torch, gigabytes
with CUDA, is not downloaded again. Everywhere else `.venv` sees nothing but its own packages.
"""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements.txt"
PYTHON = ENVIRONMENT / "bin" / "python"


def main() -> None:
    if (ENVIRONMENT / "installed").exists() or Path(sys.prefix).resolve() == ENVIRONMENT:  # requirements.txt has changed
        _pip()
        return
    torch = _torch_of_this_python()
    if torch:
        _make()
        _share_packages()
        try:
            # keeps pip from another torch where this Python has no torchvision
            _pip(f"torch=={torch}")
            subprocess.run([PYTHON, "-c", "import torch, torchvision"], check=True)
        except subprocess.CalledProcessError:
            print(f"torch {torch} of {sys.executable} does not go with the other packages: another one is installed", file=sys.stderr)
        else:
            print(f"torch {torch} of {sys.executable} is used")
            return
    _make()
    _pip()


def _torch_of_this_python() -> str:
    """Its version; empty where there is none that can be imported, or one older than requirements.txt allows."""
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode != 0:
        return ""
    lowest = re.search(r"^torch>=([\d.]+)", REQUIREMENTS.read_text(), re.MULTILINE)
    assert lowest is not None
    found = version("torch")
    return found if _numbers(found) >= _numbers(lowest[1]) else ""


def _numbers(text: str) -> tuple[int, ...]:
    """The first three numbers of a version: `2.9.1+cu128` gives `(2, 9, 1)`."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _make() -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)


def _share_packages() -> None:
    """Lets the environment see the packages of this Python.

    `python -m venv --system-site-packages` shows those of the installed Python, also where this one is of a virtual environment that
    has torch.
    """
    command = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = subprocess.run([PYTHON, "-c", command], check=True, capture_output=True, text=True).stdout.strip()
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(folder, "packages_of_the_python_with_torch.pth").write_text("\n".join(shared) + "\n")


def _pip(*more: str) -> None:
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *more, "-r", REQUIREMENTS]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # which has said why
        sys.exit(error.returncode)
