"""Creates `.venv`, the environment that `make` uses, with the Python that runs this file: `python3 install.py`.

If that Python already has a torch that requirements.txt allows, `.venv` also sees its packages, after its own, so that torch, gigabytes
with CUDA, is not downloaded again. Otherwise `.venv` is isolated.
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
    if (ENVIRONMENT / "installed").exists() or Path(sys.prefix).resolve() == ENVIRONMENT:  # only requirements.txt has changed
        _pip()
        return
    torch = _torch_of_this_python()
    if torch:
        _make()
        _share_packages()
        try:
            # if this Python has no torchvision, keeps pip from installing another torch with it
            _pip(f"torch=={torch}")
            subprocess.run([PYTHON, "-c", "import torch, torchvision"], check=True)
        except subprocess.CalledProcessError:
            print(f"torch {torch} of {sys.executable} does not match the other packages: installing another one", file=sys.stderr)
        else:
            print(f"using torch {torch} of {sys.executable}")
            return
    _make()
    _pip()


def _torch_of_this_python() -> str:
    """The version of torch that this Python imports; "" if it has none, or one older than requirements.txt allows."""
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode != 0:
        return ""
    lowest = re.search(r"^torch>=([\d.]+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE)
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

    `python -m venv --system-site-packages` would share those of the system's Python, even if this Python is a virtual environment
    that has torch.
    """
    command = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = subprocess.run([PYTHON, "-c", command], check=True, capture_output=True, encoding="locale").stdout.strip()
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # the encoding that Python reads .pth files in
    Path(folder, "packages_of_the_python_with_torch.pth").write_text("\n".join(shared) + "\n", encoding="locale")


def _pip(*more: str) -> None:
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *more, "-r", REQUIREMENTS]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # pip has printed why
        sys.exit(error.returncode)
