import json
import shutil

import numpy as np
import pytest
from conftest import add_scoring, load_scores, make_catalog, members, rows

import curate
from curate import recipe
from curate.errors import CurateError
from curate.package_data import RECIPES_DIR, list_names

CHAIN = """
catalog = "${FOLDER}/catalog"
[embed]
shards = ["${FOLDER}/corpus/*.tar"]
encoder = "pixels"
[cluster]
k = 3
[score]
metrics = ["ssl_prototypes", "random"]
[[select]]
keep = 0.5
[[select]]
keep = 0.5
strategy = "easiest"
[export]
selection = "${SELECTION}"
out = "${CATALOG}/../out/${SELECTION}"
"""


@pytest.fixture
def write_recipe(tmp_path, monkeypatch):
    """A function that writes a recipe, in which ${FOLDER} is the test's folder."""
    monkeypatch.setenv("FOLDER", str(tmp_path))

    def write(text: str):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


def test_a_recipe_runs_the_chain_and_again_does_nothing(write_recipe, tmp_path, caplog):
    catalog = make_catalog(tmp_path)
    path = write_recipe(CHAIN)
    assert curate.run(path) == f"{tmp_path}/catalog/../out/ssl_prototypes-easiest-0.5"
    assert len(members(catalog, "ssl_prototypes-hardest-0.5")) == 15
    assert len(members(catalog, "ssl_prototypes-easiest-0.5")) == 15
    runs = rows(catalog, "select count(*) from runs")
    caplog.clear()  # another test may have left the messages on: only the second run counts
    with caplog.at_level("INFO", "curate"):
        curate.run(path)
    assert rows(catalog, "select count(*) from runs") == runs
    assert caplog.text.count("nothing to do") == 7


def test_set_and_from_change_a_run(write_recipe, tmp_path):
    catalog = make_catalog(tmp_path)
    path = write_recipe(CHAIN)
    curate.run(path, set=["select.name=chosen", "cluster.k=2"])
    assert rows(catalog, "select k from clusterings") == [(2,)]
    assert rows(catalog, "select selection, strategy from selections") == [("chosen", "easiest")]
    assert rows(catalog, "select selection, num_samples from exports") == [("chosen", 15)]
    assert curate.run(path, from_step="select", dry_run=True) == str(tmp_path / "catalog")
    with pytest.raises(CurateError, match="start with --from select"):
        curate.run(path, from_step="export")


def test_steps_that_name_their_verb_run_in_any_order(write_recipe, tmp_path):
    catalog = make_catalog(tmp_path)
    steps = [
        {"verb": "select", "strategy": "random", "keep": 0.5, "name": "half"},
        {"verb": "cluster", "within": "half", "k": 2, "name": "inner"},
        {"verb": "score", "metrics": ["ssl_prototypes"], "within": "half", "name": "far"},
        {"verb": "select", "scoring": "far", "within": "half", "keep": 0.4, "name": "few"},
    ]
    lines = ['catalog = "${FOLDER}/catalog"']
    for step in steps:
        lines += ["[[step]]", *(f"{key} = {json.dumps(value)}" for key, value in step.items())]
    path = write_recipe("\n".join(lines))
    assert curate.run(path, set=["score.name=distance", "select.seed=1"], dry_run=True)
    assert curate.run(path) == "few"
    assert len(members(catalog, "few")) == 6
    assert set(members(catalog, "few")) < set(members(catalog, "half"))
    assert rows(catalog, "select num_samples from clusterings where clustering = 'inner'") == [
        (15,)
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[select]\nkep = 0.5", r"\[select\] .*'kep'; it takes: keep, scoring"),
        ("[select]\nkeep = '0.5'", "--keep '0.5': give a number above 0 and up to 1"),
        ("[score]\nmetrics = 3", "METRICS 3: give a text"),
        ("[cluster]\nk = true", "--k True: give a whole number"),
        ("", "has no step"),
        ("[score]\nmetrics = ['el3n']", "no metric called"),
        ("[select]\nkeep = 7", "up to 1"),
        ("[embed]\nshards = 'x'\nencoder = 'nope'", "no encoder called"),
        ("[polish]\nx = 1", r"\[polish\] is no step; there are: pack, embed"),
        ("embed = 3", r"\[embed\] is no step"),
        ("catalog = 3", "catalog is the name of a folder"),
        (
            "[embed]\nshards = ['${NOT_SET_ANYWHERE}/x']",
            r"\$\{NOT_SET_ANYWHERE\}, which is not set",
        ),
        ("[embed", "is no TOML"),
        ("[select]\nscoring = 'x'", "--keep is missing"),
        ("[step]\nkeep = 0.5", r"\[\[step\]\] has no verb: write verb = "),
        ("[[step]]\nverb = 'polish'", r"\[polish\] is no step; there are: pack, embed"),
        ("[[step]]\nverb = 'select'\nkep = 1", r"\[select\] .*'kep'; it takes: keep, scoring"),
    ],
)
def test_a_mistake_is_found_before_any_work(write_recipe, tmp_path, text, reason):
    with pytest.raises(CurateError, match=reason):
        curate.run(write_recipe(text), tmp_path / "catalog")
    assert not (tmp_path / "catalog").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"set": ["keep=0.5"]}, "write step.key=value"),
        ({"set": ["gallery.size=9"]}, "with a step of the recipe"),
        ({"set": ["select.kep=1"]}, "'kep'"),
        ({"from_step": "gallery"}, r"no \[gallery\]; it has: embed, cluster"),
    ],
)
def test_a_wrong_option_is_found_before_any_work(write_recipe, tmp_path, options, reason):
    with pytest.raises(CurateError, match=reason):
        curate.run(write_recipe(CHAIN), **options)
    assert not (tmp_path / "catalog").exists()


def test_the_metric_file_of_a_recipe_averages_scorings_in_units_of_their_spread(
    write_recipe, tmp_path
):
    """recipes/paper/ensemble.py, found by its recipe's own folder."""
    catalog = make_catalog(tmp_path)
    ids = [sample_id for (sample_id,) in rows(catalog, "select sample_id from samples order by 1")]
    near, far = np.arange(30.0), 100.0 * np.arange(30)[::-1] ** 2
    add_scoring(catalog, "near", dict(zip(ids, near, strict=True)))
    add_scoring(catalog, "far", dict(zip(ids, far, strict=True)))
    shutil.copy(RECIPES_DIR / "paper" / "ensemble.py", tmp_path)
    text = """
        catalog = "${FOLDER}/catalog"
        [score]
        metric_file = "${RECIPE_FOLDER}/ensemble.py:mean_score"
        options = { catalog = "${CATALOG}", scorings = "near,far" }
        name = "mean"
    """
    curate.run(write_recipe(text))
    expected = (near / near.std() + far / far.std()) / 2
    np.testing.assert_allclose(load_scores(catalog, "mean"), expected, rtol=1e-6)


@pytest.mark.parametrize("name", list_names(RECIPES_DIR, ".toml"))
def test_shipped_recipes_are_sound_and_say_what_to_expect(name, monkeypatch):
    monkeypatch.setenv("CURATE_DATA", "/somewhere")
    _, steps = recipe.load_recipe(name, [])
    assert steps[0].verb == "embed"
    comment = (RECIPES_DIR / f"{name}.toml").read_text().split("\n\n")[0]
    assert "xpected:" in comment
    assert "The command:" in comment


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(CurateError, match="no recipe called 'lunch'; there are: .*demo"):
        curate.run("lunch")
    with pytest.raises(CurateError, match="no recipe at 'nowhere/demo.toml'"):
        curate.run("nowhere/demo.toml")
