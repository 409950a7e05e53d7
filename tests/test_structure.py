"""Imports point down, without circles; no worker reaches the catalog; nothing heavy at start-up."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "curate"

# From top to bottom: a file may import from its own room and from those below.
ROOMS = (
    ("__main__", "cli"),
    ("demo",),
    ("recipe",),
    ("stages", "selection_filter", "selection_stream"),
    ("training",),
    ("encoders", "metrics", "models", "strategies"),
    ("catalog",),
    ("execution",),
    ("streaming",),
    ("formats", "plotting"),
    ("storage",),
    ("__init__", "verbs", "options", "distances", "registry", "package_data", "progress"),
    ("errors", "formatting", "random_hash"),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# What runs in worker processes, or in training, on machines that see no catalog.
WORKERS = ("stages/*/worker.py", "stages/cluster/kmeans.py", "training/*.py", "streaming/*.py")
FORBIDDEN_FOR_WORKERS = "catalog"


def module_name(package: Path, path: Path) -> str:
    words = path.relative_to(package).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words) or "__init__"


def imports_of(package: Path, path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, anywhere in it but for type checkers."""
    for node in iterate_runtime_nodes(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            root, _, inner = name.partition(".")
            if root == "curate" and inner and find_file(package, inner):
                yield inner


def iterate_runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from iterate_runtime_nodes(node)


def find_file(package: Path, module: str) -> Path | None:
    path = package.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def import_graph(package: Path) -> dict[str, set[str]]:
    """Each module with the modules that it imports, and the packages that come with these."""
    graph: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        module = module_name(package, path)
        imported = set(imports_of(package, path))
        for name in list(imported):
            words = name.split(".")
            imported |= {".".join(words[:count]) for count in range(1, len(words))}
        # Python runs a package's __init__ before any of its modules.
        own_packages = {module.rpartition(".")[0]} - {""}
        graph[module] = (imported - {module} - own_packages) & existing_modules(package)
    return graph


def existing_modules(package: Path) -> set[str]:
    return {module_name(package, path) for path in package.rglob("*.py")}


def find_violations(package: Path) -> list[str]:
    graph = import_graph(package)
    violations = []
    for module, imported in graph.items():
        room = module.split(".")[0]
        if room not in LEVELS:
            violations.append(f"{module}: its room has no level in ROOMS")
            continue
        violations += [
            f"{module} imports {name}, which is above it"
            for name in sorted(imported)
            if LEVELS.get(name.split(".")[0], -1) < LEVELS[room]
        ]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        violations.append(f"a circle: {' → '.join(error.args[1])}")
    for pattern in WORKERS:
        for path in sorted(package.glob(pattern)):
            module = module_name(package, path)
            chain = find_chain(graph, module, FORBIDDEN_FOR_WORKERS)
            if chain:
                violations.append(f"a worker reaches the catalog: {' → '.join(chain)}")
    return violations


def find_chain(graph: dict[str, set[str]], module: str, forbidden: str) -> list[str] | None:
    """The shortest chain of imports to a module of the forbidden room."""
    chains, seen = [[module]], {module}
    for chain in chains:
        for name in sorted(graph[chain[-1]]):
            if name.split(".")[0] == forbidden:
                return [*chain, name]
            if name not in seen:
                seen.add(name)
                chains.append([*chain, name])
    return None


def test_imports_point_down_without_circles_and_no_worker_reaches_the_catalog():
    assert find_violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "violation"),
    [
        (
            "storage/files.py",
            "import curate.catalog.sets",
            "storage.files imports catalog.sets, which is above it",
        ),
        (
            "formats/tar.py",
            "def f():\n    from curate.stages import gallery",
            "formats.tar imports stages.gallery, which is above it",
        ),
        ("execution/tasks.py", "from curate.execution import local", "a circle: "),
        (
            "stages/embed/inference.py",
            "from curate.stages import staleness",
            "a worker reaches the catalog: stages.embed.worker → stages.embed.inference → "
            "stages.staleness → catalog",
        ),
        ("newroom.py", "", "newroom: its room has no level in ROOMS"),
    ],
    ids=["up", "up in a function", "circle", "worker through others", "unknown room"],
)
def test_a_forbidden_import_is_noticed(tmp_path, file, line, violation):
    package = tmp_path / "curate"
    shutil.copytree(PACKAGE, package)
    with (package / file).open("a") as source:
        source.write(f"\n{line}\n")
    assert any(one.startswith(violation) for one in find_violations(package))


def test_the_page_on_architecture_has_the_layers():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    table = page[page.index("| layer |") :].split("\n\n")[0].splitlines()[2:]
    layers = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table]
    special = {"__init__", "__main__"}
    assert [set(layer) for layer in layers] == [set(rooms) - special for rooms in ROOMS]


def run_python(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


HEAVY = "{'torch', 'open_clip', 'timm', 'webdataset', 'faiss', 'ray', 'pyarrow'}"


def test_help_imports_nothing_heavy():
    run_python(
        "import sys\nfrom curate.cli.app import main\n"
        "for words in (['--help'], ['embed', '--help']):\n"
        "    try:\n        main(words)\n"
        "    except SystemExit as end:\n        assert not end.code\n"
        "    light = {'numpy', 'duckdb'} if len(words) == 1 else set()\n"
        f"    heavy = ({HEAVY} | light) & set(sys.modules)\n"
        "    assert not heavy, heavy"
    )


def test_a_query_imports_no_torch_no_pyarrow_and_no_numpy(catalog):
    run_python(
        "import sys\nfrom curate.cli.app import main\n"
        f"try:\n    main(['query', 'shards', '-c', {str(catalog.path)!r}])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        f"heavy = ({HEAVY} | {{'numpy'}}) & set(sys.modules)\nassert not heavy, heavy"
    )
