import json

import pytest
from conftest import run_curate
from PIL import Image

import curate
from curate.errors import OptionError
from curate.stages.theory.figures import draw_errors


def test_a_point_is_printed_as_a_table_or_as_json():
    words = ("theory", "--alpha-tot", 8, "--keep", 0.3)
    point = json.loads(run_curate(*words, "-f", "json", check=True).stdout)
    assert point["error"] == pytest.approx(0.07149, abs=5e-6)
    assert 0 < point["kappa"] < point["overlap"] < 1
    assert "0.071487" in run_curate(*words, check=True).stdout


def test_a_figure_is_a_png_and_an_svg_and_the_same_twice(tmp_path):
    path = curate.theory(figure="2a", out=tmp_path)
    assert path == f"{tmp_path}/theory-2a.png"
    with Image.open(path) as image:
        assert image.width > 900
    svg = (tmp_path / "theory-2a.svg").read_bytes()
    curate.theory(figure="2a", out=tmp_path / "again")
    assert (tmp_path / "again" / "theory-2a.svg").read_bytes() == svg


def test_the_line_of_the_best_keep_ends_where_none_is_best_and_the_figure_says_so(tmp_path):
    quick = {"keeps": (1.0, 0.5), "dimensions": 20, "seeds": 2}
    note = draw_errors(tmp_path / "1a", name="1a", theta=0, highest_alpha=2.5, **quick)
    assert "Best keep: of all from 0.001 to 1; it ends at α_prune = 1.999" in note
    assert "2 simulated perceptrons each, N = 20" in note
    assert "α_prune = 1.999" in (tmp_path / "1a.svg").read_text()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "give --alpha-tot"),
        ({"figure": "9z"}, "--figure 9z: choose one of 1a, 1b"),
        ({"alpha_tot": 2.0, "keep": 0.0}, "--keep 0: give a number above 0 and up to 1"),
        ({"alpha_tot": 2.0, "strategy": "odd"}, "--strategy odd: choose one of hardest, easiest"),
    ],
)
def test_wrong_options_name_what_there_is(options, reason):
    with pytest.raises(OptionError, match=reason):
        curate.theory(**options)
