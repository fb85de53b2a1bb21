"""Imports point down the list in ARCHITECTURE.md, without cycles; core never imports Streamlit; text has an encoding; paths exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATH = re.compile(r"\b(?:core|dashboard|tests|benchmarks|assets|docs)/[\w./-]+\.(?:py|js|css|md|toml|json|html|j2|c)\b")

# top to bottom; modules on one line may import each other
LAYERS = (
    ("streamlit_app",),
    ("dashboard.pages",),
    ("dashboard.views",),
    ("dashboard.forms",),
    ("dashboard.updates",),
    ("dashboard.components",),
    ("dashboard.downloads",),
    ("dashboard.charts",),
    ("dashboard.tables",),
    ("dashboard.images",),
    ("dashboard.session",),
    ("dashboard.server",),
    ("dashboard.names", "dashboard.text", "dashboard.pages.__init__"),  # the last is the list PAGES, which imports no page
    ("core.cli",),
    ("core.comparison",),
    ("core.runs",),
    ("core.pipeline",),
    ("core.stages",),
    ("core.export",),
    ("core.recipes",),
    ("core.evaluation",),
    ("core.quantization",),
    ("core.generation",),
    ("core.data",),
    ("core.models",),
    ("core.config",),
    ("core.generation.methods",),  # the table of methods, which configs name; imports no torch
    (
        "core.barriers",
        "core.checkpoints",
        "core.channels",
        "core.errors",
        "core.files",
        "core.gpu",
        "core.layout",
        "core.memory",
        "core.reporting",
        "core.schedules",
        "core.threads",
        "core.processes",
        "core.untrusted",
    ),
)
LOWEST_PAGE_LAYER = 12
ENTRY = "core.__main__"  # may import anything in core; nothing imports it


def layer(module: str) -> int | None:
    """Place in LAYERS, 0 at the top; None for a module that is not in the list."""
    if module == "dashboard.pages" or module.removeprefix("dashboard.pages.").isupper():  # the list, not a page
        module = "dashboard.pages.__init__"
    found = [
        (len(member), place)
        for place, members in enumerate(LAYERS)
        for member in members
        if module == member or module.startswith(member + ".")
    ]
    return max(found)[1] if found else None  # the longest match wins: core.generation.methods has its own layer


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Everything that `module` imports, also inside functions; `from a import b` counts as a.b, a module or a name in one."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *([base] if base else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def complaints(sources: dict[str, str]) -> list[str]:
    """Forbidden imports and unlisted modules, one message each. sources: module name -> source."""
    wrong = []
    for module, source in sources.items():
        here = layer(module)
        if here is None and module not in (ENTRY, "core", "dashboard"):
            wrong.append(f"{module} has no place in the list")
            continue
        for imported in sorted(imports(source, module)):
            if imported.split(".")[0] == "streamlit" and module.split(".")[0] == "core":
                wrong.append(f"{module} imports streamlit")
            if imported == ENTRY or imported.startswith(ENTRY + "."):
                wrong.append(f"{module} imports {ENTRY}")
            there = layer(imported)
            if module == ENTRY:
                if there is not None and there <= LOWEST_PAGE_LAYER:
                    wrong.append(f"{module} imports {imported}, which is a page")
            elif there is not None and here is not None and there < here:
                wrong.append(f"{module} imports {imported}, which stands above it")
    return wrong


def project() -> dict[str, str]:
    files = [ROOT / "streamlit_app.py", *(ROOT / "core").rglob("*.py"), *(ROOT / "dashboard").rglob("*.py")]
    return {module_name(path, ROOT): path.read_text(encoding="utf-8") for path in files}


def test_imports_point_down():
    assert complaints(project()) == []


def test_every_layer_exists():
    modules = project()
    for member in (member for members in LAYERS for member in members):
        name = member.removesuffix(".__init__")
        assert any(module == name or module.startswith(name + ".") for module in modules), member


def test_charts_tables_and_images_do_not_import_streamlit():
    modules = project()
    pure = [module for module in modules if module.startswith(("dashboard.charts", "dashboard.tables", "dashboard.images"))]
    assert len(pure) > 10
    for module in pure:
        assert not any(name.split(".")[0] == "streamlit" for name in imports(modules[module], module)), module


def test_modules_have_no_import_cycle():
    """Also within a layer."""
    sources = project()
    graph = {
        module: {
            other
            for name in imports(source, module)
            for other in (name, name.rpartition(".")[0])
            if other in sources and other != module and "." in other
        }
        for module, source in sources.items()
    }
    assert circle(graph) is None


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return None
        for other in graph[module]:
            if found := walk(other, [*path, module]):
                return found
        done.add(module)
        return None

    return next((found for module in graph if (found := walk(module, []))), None)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("core.config", "from core.models.registry import MODELS", "stands above"),
        ("core.generation.losses", "def f():\n    import core.quantization.qat", "stands above"),
        ("core.generation.losses", "from core import pipeline", "stands above"),
        ("core.pipeline", "from core.runs import store", "stands above"),
        ("core.models.registry", "from ..generation import synthesis", "stands above"),
        ("core.runs.store", "from dashboard import session", "stands above"),
        ("core.models.registry", "from core.data.labeled import LabeledImages", "stands above"),
        ("dashboard.tables.results", "from dashboard.charts.style import method_name", "stands above"),
        ("core.runs.store", "if True:\n    import streamlit as st", "imports streamlit"),
        ("core.__main__", "from dashboard.charts import style", "is a page"),
        ("core.__main__", "import streamlit", "imports streamlit"),
        ("dashboard.session", "from core.__main__ import main", "imports core.__main__"),
        ("core.utils", "", "no place"),
    ],
)
def test_checker_finds_an_upward_import(module, source, complaint):
    found = complaints({module: source})
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.runs.manager", "from core.pipeline import execute"),
        ("core.data.labeled", "from core.models.registry import ASSETS"),
        ("core.recipes.pretrain", "from core.data.labeled import LabeledImages"),
        ("core.__main__", "from core.runs.store import RunStore\nfrom core import pipeline"),
        ("dashboard.pages.studio", "import streamlit as st\nfrom dashboard.charts import style\nfrom core.config import PRESETS"),
        ("core.generation.loop", "from . import losses\nfrom ..data import image_sets"),
    ],
)
def test_checker_allows_downward_imports(module, source):
    assert complaints({module: source}) == []


def test_import_cycle_is_found():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def without_encoding(source: str) -> list[int]:
    """Lines that read or write text in the encoding of the locale. Ruff's PLW1514 finds only those whose object it knows to be a path."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        owner, name = ast.unparse(node.func).rpartition(".")[::2]
        mode = keywords.get("mode") or next(iter(node.args[0 if owner and name == "open" else 1 :]), ast.Constant("r"))
        opened = name in ("open", "fdopen") and owner not in ("Image", "tarfile") and isinstance(mode, ast.Constant)
        text = opened and re.fullmatch("[rwax]t?[+]?", str(mode.value))
        if text or name in ("read_text", "write_text") or keywords.keys() & {"text", "universal_newlines"}:
            found.append(node.lineno)
    return found


def test_text_files_have_an_encoding():
    """Without one, the program fails or writes other files in a locale without UTF-8, such as that of Windows."""
    rooms = ("core", "dashboard", "benchmarks", "examples", "tests")
    files = [ROOT / "streamlit_app.py", ROOT / "install.py", *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    wrong = [(str(path.relative_to(ROOT)), line) for path in files for line in without_encoding(path.read_text(encoding="utf-8"))]
    # members of zip files, whose open() reads bytes
    assert {file for file, _ in wrong} == {"core/data/numpy_archives.py", "core/data/zip_files.py"}


@pytest.mark.parametrize(
    "source",
    [
        "p.read_text()",
        "p.write_text(x)",
        "p.open()",
        "open(p)",
        "open(p, 'w')",
        "os.fdopen(n, mode='r+')",
        "run(c, text=True)",
        "p.open(newline='')",
    ],
)
def test_missing_encoding_is_found(source):
    assert without_encoding(source) == [1]


@pytest.mark.parametrize("source", ["p.read_text(encoding='utf-8')", "p.open('rb')", "open(p, 'wb')", "Image.open(p)", "run(c)"])
def test_binary_files_need_no_encoding(source):
    assert without_encoding(source) == []


def test_paths_in_comments_exist():
    """Comments of sources and settings name files that exist."""
    sources = [
        ROOT / "streamlit_app.py",
        ROOT / "Makefile",
        ROOT / "requirements.txt",
        ROOT / "pyproject.toml",
        ROOT / ".streamlit/config.toml",
    ]
    for room in ("core", "dashboard"):
        sources += [path for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".js", ".css", ".c", ".j2", ".html")]
    named = {(path, name) for path in sources for name in PATH.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert [(str(path.relative_to(ROOT)), name) for path, name in named if not (ROOT / name).exists()] == []


def test_ray_is_imported_only_where_runs_go_to_a_cluster():
    """Everything else works where Ray is not installed: these modules are imported in functions that need a cluster."""
    of_cluster = {"core.runs.cluster.batches", "core.runs.cluster.executor", "core.runs.cluster.node"}

    def at_import(source: str, module: str) -> set[str]:
        body = ast.Module([node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        return imports(ast.unparse(body), module)

    found = {module: at_import(source, module) for module, source in project().items()}
    assert {module for module, names in found.items() if any(name.split(".")[0] == "ray" for name in names)} == of_cluster
    users = {module for module, names in found.items() if any(name.startswith(tuple(of_cluster)) for name in names)}
    assert users == {"core.runs.cluster.executor"}  # imports the other one
