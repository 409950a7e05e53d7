"""The wheel brings its SQL and recipes along, and works where there is no checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def test_a_wheel_in_a_fresh_environment_lists_its_queries_and_recipes(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("foundation_curate-*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True
    )
    # Its dependencies are lent by this environment, whose own curate (an editable install) a path file does not show.
    (site,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"])

    def run(*words: str) -> str:
        return subprocess.run(
            [tmp_path / "fresh" / "bin" / "curate", *words], check=True, capture_output=True, text=True, cwd=tmp_path
        ).stdout

    where = subprocess.run(
        [python, "-c", "import curate; print(curate.__file__)"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert Path(where.stdout.strip()).is_relative_to(tmp_path / "fresh")
    assert "class_balance" in run("list", "queries")
    assert "demo" in run("list", "recipes")
    assert run("run", "demo", "--dry-run").strip() == "curate-demo"
    with zipfile.ZipFile(wheel) as archive:
        assert {"curate/templates/report.html", "curate/shipped/catalog/migrations/2.sql"} <= set(archive.namelist())
