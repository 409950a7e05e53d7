import json
import subprocess
import sys

import pytest
from PIL import Image

import curate
from curate.errors import CurateError


def test_a_point_is_printed_as_a_table_or_as_json():
    asked = [sys.executable, "-m", "curate", "theory", "--alpha-tot", "8", "--keep", "0.3"]
    found = json.loads(subprocess.run([*asked, "-f", "json"], capture_output=True, check=True).stdout)
    assert found["error"] == pytest.approx(0.07149, abs=5e-6)
    assert 0 < found["kappa"] < found["overlap"] < 1
    assert "0.071487" in subprocess.run(asked, capture_output=True, check=True, text=True).stdout


def test_a_figure_is_a_png_and_an_svg_and_the_same_twice(tmp_path):
    path = curate.theory(figure="1b", out=tmp_path)
    assert path == f"{tmp_path}/theory-1b.png"
    with Image.open(path) as image:
        assert image.width > 1000
    svg = (tmp_path / "theory-1b.svg").read_bytes()
    curate.theory(figure="1b", out=tmp_path / "again")
    assert (tmp_path / "again" / "theory-1b.svg").read_bytes() == svg


@pytest.mark.parametrize(("options", "reason"), [
    ({}, "give --alpha-tot"), ({"figure": "9z"}, "no figure called '9z'; there are: 1a, 1b"),
    ({"alpha_tot": 2.0, "keep": 0.0}, "keep in"), ({"alpha_tot": 2.0, "strategy": "odd"}, "strategy is one of"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, reason):
    with pytest.raises(CurateError, match=reason):
        curate.theory(**options)
