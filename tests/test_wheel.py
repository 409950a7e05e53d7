"""The wheel ships its SQL and recipes, and works where there is no checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def test_a_wheel_in_a_fresh_environment_lists_its_queries_and_recipes(tmp_path):
    def run(*command: str | Path, cwd: Path = tmp_path) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout

    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    run(*build, cwd=PROJECT)
    (wheel,) = tmp_path.glob("foundation_curate-*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    python, curate = (tmp_path / "fresh" / "bin" / name for name in ("python", "curate"))
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    # Its dependencies are those of this environment, whose own curate (an editable install) a path
    # file does not show.
    (site_packages,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])

    package = Path(run(python, "-c", "import curate; print(curate.__file__)").strip())
    assert package.is_relative_to(tmp_path / "fresh")
    assert "class_balance" in run(curate, "list", "queries")
    assert "demo" in run(curate, "list", "recipes")
    assert run(curate, "run", "demo", "--dry-run").strip() == "curate-demo"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"curate/stages/report/page.{kind}" for kind in ("html", "css", "js")} <= names
    assert "curate/shipped/catalog/migrations/2.sql" in names
