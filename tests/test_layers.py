"""Imports point down only, and nothing heavy is imported at start-up."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "curate"
LAYERS = [
    {
        "errors",
        "fingerprints",
        "memory",
        "units",
        "storage",
        "registry",
        "resources",
        "progress",
        "atomic",
        "workspaces",
        "shuffle",
        "provenance",
        "distances",
        "perceptron",
        "scaling",
        "figures",
        "charts",
    },
    {"tar", "shards", "vectors", "probes", "images", "places", "sets", "runs", "database", "catalog", "corpus"},
    {"encoders", "metrics", "models", "strategies", "membership"},
    {"engine"},
    {"stages"},
    {"recipe", "demo", "answers"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "curate":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("curate.")}
    return found


def test_imports_point_down():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in LEVEL, f"{room} has no layer yet"
        up = {name for name in imports(path) if LEVEL.get(name, -1) > LEVEL[room]}
        assert not up, f"{path.name} (layer {LEVEL[room]}) imports {up}"


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nfrom curate.cli import main\n"
        "try:\n    main(['embed', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'open_clip', 'timm', 'webdataset', 'faiss', 'pyarrow', 'numpy', 'duckdb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_querying_imports_no_torch_and_no_pyarrow(catalog):
    program = (
        "import sys\nfrom curate.cli import main\n"
        f"try:\n    main(['query', 'shards', '-c', {str(catalog.path)!r}])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'open_clip', 'timm', 'webdataset', 'faiss', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
