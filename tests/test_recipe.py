import pytest
from conftest import make_catalog, members, rows

import curate
from curate import recipe, resources
from curate.errors import CurateError


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


CHAIN = """
catalog = "${PLACE}/catalog"
[embed]
shards = ["${PLACE}/corpus/*.tar"]
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


def test_a_recipe_runs_the_chain_and_again_does_nothing(toml, tmp_path, monkeypatch, caplog):
    catalog = make_catalog(tmp_path)
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert curate.run(toml(CHAIN)) == f"{tmp_path}/catalog/../out/ssl_prototypes-easiest-0.5"
    assert len(members(catalog, "ssl_prototypes-hardest-0.5")) == len(members(catalog, "ssl_prototypes-easiest-0.5")) == 15
    runs = rows(catalog, "select count(*) from runs")
    caplog.clear()  # another test may have left the messages on: the first run is not what is counted
    with caplog.at_level("INFO", "curate"):
        curate.run(toml(CHAIN))
    assert rows(catalog, "select count(*) from runs") == runs
    assert caplog.text.count("nothing to do") == 7


def test_set_and_from_change_a_run(toml, tmp_path, monkeypatch):
    catalog = make_catalog(tmp_path)
    monkeypatch.setenv("PLACE", str(tmp_path))
    curate.run(toml(CHAIN), set=["select.name=chosen", "cluster.k=2"])
    assert rows(catalog, "select k from clusterings") == [(2,)]
    assert rows(catalog, "select selection, strategy from selections") == [("chosen", "easiest")]
    assert rows(catalog, "select selection, num_samples from exports") == [("chosen", 15)]
    assert curate.run(toml(CHAIN), from_stage="select", dry_run=True) == str(tmp_path / "catalog")
    with pytest.raises(CurateError, match="begin with --from select"):
        curate.run(toml(CHAIN), from_stage="export")


@pytest.mark.parametrize(("text", "reason"), [
    ("[select]\nkep = 0.5", r"\[select\] .*'kep'; it takes: keep, scoring"),
    ("[select]\nkeep = '0.5'", "--keep '0.5': give a fraction"),
    ("[score]\nmetrics = 3", "metrics = 3 is not"),
    ("[cluster]\nk = true", "k = True is not a whole number"), ("", "has no step"),
    ("[score]\nmetrics = ['el3n']", "no metric called"),
    ("[select]\nkeep = 7", "up to 1"), ("[embed]\nshards = 'x'\nencoder = 'nope'", "no encoder called"),
    ("[polish]\nx = 1", r"\[polish\] is no stage; there are: embed"),
    ("embed = 3", r"\[embed\] is no stage"),
    ("catalog = 3", "catalog is the name of a folder"),
    ("[embed]\nshards = ['${NOT_SET_ANYWHERE}/x']", r"\$\{NOT_SET_ANYWHERE\}, which is not set"),
    ("[embed", "is no TOML"),
    ("[select]\nscoring = 'x'", "missing a required argument: 'keep'"),
])  # fmt: skip
def test_a_mistake_is_found_before_any_work(toml, tmp_path, text, reason):
    with pytest.raises(CurateError, match=reason):
        curate.run(toml(text), tmp_path / "catalog")
    assert not (tmp_path / "catalog").exists()


@pytest.mark.parametrize(("options", "reason"), [
    ({"set": ["keep=0.5"]}, "write stage.key=value"), ({"set": ["gallery.size=9"]}, "with a stage of the recipe"),
    ({"set": ["select.kep=1"]}, "'kep'"), ({"from_stage": "gallery"}, r"no \[gallery\]; it has: embed, cluster"),
])  # fmt: skip
def test_a_wrong_option_is_found_before_any_work(toml, tmp_path, monkeypatch, options, reason):
    monkeypatch.setenv("PLACE", str(tmp_path))
    with pytest.raises(CurateError, match=reason):
        curate.run(toml(CHAIN), **options)
    assert not (tmp_path / "catalog").exists()


@pytest.mark.parametrize("name", resources.names(resources.RECIPES, ".toml"))
def test_shipped_recipes_are_sound_and_say_what_to_expect(name, monkeypatch):
    monkeypatch.setenv("CURATE_DATA", "/somewhere")
    _, steps = recipe.load(name, [])
    assert steps[0].stage == "embed"
    comment = (resources.RECIPES / f"{name}.toml").read_text().split("\n\n")[0]
    assert "xpected:" in comment
    assert "The command:" in comment


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(CurateError, match="no recipe called 'lunch'; there are: .*demo"):
        curate.run("lunch")
    with pytest.raises(CurateError, match="no recipe at 'nowhere/demo.toml'"):
        curate.run("nowhere/demo.toml")
