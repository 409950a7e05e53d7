import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import members, rows, write_shard
from PIL import Image
from scipy import stats

import curate
from curate import models, sets
from curate.catalog import Catalog
from curate.engine import validating
from curate.errors import CurateError
from curate.stages import arms, tasks
from curate.stages.embed import embed
from curate.stages.score import score
from curate.stages.select import select
from curate.stages.validate import _verdict, validate, verdicts


def colours(folder: Path, name: str, count: int, seed: int) -> str:
    """One shard sorted by class: three colours with much noise."""
    generator = np.random.default_rng(seed)
    samples = []
    for place in range(count):
        label = 3 * place // count
        pixels = (np.eye(3)[label] * 60 + 90 + generator.normal(0, 35, 3) + generator.normal(0, 30, (6, 6, 3))).clip(0, 255)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, format="PNG")
        samples.append((f"{name}{place:04d}", {"png": file.getvalue(), "cls": b"%d" % label}))
    return str(write_shard(folder / f"{name}.tar", samples))


def stripes(folder: Path, name: str, count: int, seed: int) -> str:
    """Another task: dark images and light ones."""
    generator = np.random.default_rng(seed)
    samples = []
    for place in range(count):
        file = io.BytesIO()
        pixels = (60 + 130 * (place % 2) + generator.normal(0, 10, (6, 6, 3))).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(file, format="PNG")
        samples.append((f"{name}{place:04d}", {"png": file.getvalue(), "cls": (b"dark", b"light")[place % 2]}))
    return str(write_shard(folder / f"{name}.tar", samples))


@pytest.fixture
def coloured(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [colours(tmp_path, "a", 150, 0), colours(tmp_path, "b", 150, 1)], encoder="pixels")
    score(catalog, "supervised_prototypes")
    return catalog


TRAINING = {"model": "mlp:16", "seeds": 3, "epochs": 4}
OPTIONS = {"scoring": "supervised_prototypes"} | TRAINING


def test_every_arm_trains_as_often_and_pruned_and_random_on_as_many(coloured, tmp_path):
    test = colours(tmp_path, "test", 90, 2)
    assert validate(coloured, keep=[0.5, 0.2], strategy=["hardest", "easiest"], test=test, **OPTIONS) == "mlp-16"
    counts = rows(coloured, "select arm, selection, num_samples, count(*), count(distinct seed) from trainings group by all")
    names = [f"supervised_prototypes-{way}-{keep}" for keep in (0.5, 0.2) for way in ("hardest", "easiest")]
    wanted = [("full", None, 300, 3, 3)]
    wanted += [(arm, name, 150 if "0.5" in name else 60, 3, 3) for name in names for arm in ("pruned", "random")]
    assert sorted(counts, key=str) == sorted(wanted, key=str)
    assert rows(coloured, "select num_test, num_samples, num_trainings from validations") == [(90, 300, 27)]
    assert rows(coloured, "select min(accuracy) > 0.5, max(accuracy) <= 1 from trainings where arm = 'full'") == [(True, True)]


def test_accuracies_by_class_make_up_the_whole(coloured):
    validate(coloured, keep=0.5, **OPTIONS)
    difference = rows(
        coloured,
        "select max(abs(accuracy - whole)) from trainings join (select arm, selection, seed, "
        "sum(accuracy * num_test) / sum(num_test) as whole from class_accuracies group by all) as by_class "
        "on trainings.arm = by_class.arm and trainings.seed = by_class.seed "
        "and trainings.selection is not distinct from by_class.selection",
    )
    assert difference[0][0] == pytest.approx(0, abs=1e-12)


def test_without_test_shards_a_fifth_is_held_out_by_key_from_every_class(coloured):
    validate(coloured, keep=0.5, **OPTIONS)
    ((num_test, num_samples),) = rows(coloured, "select num_test, num_samples from validations")
    assert num_test + num_samples == 300
    assert 40 <= num_test <= 80
    assert {label for (label,) in rows(coloured, "select label from class_accuracies where num_test > 5")} == {"0", "1", "2"}
    ids = np.array([row[0] for row in rows(coloured, "select sample_id from samples order by 1")])
    assert tasks.held_out_by_key(coloured, ids).sum() == num_test


def test_a_random_arm_is_what_select_draws(coloured):
    name = select(coloured, keep=0.3, strategy="random", balance=0.8, seed=7)
    ids = np.array([row[0] for row in rows(coloured, "select sample_id from samples order by 1")])
    head = coloured.require("selection", name)
    draw = arms._random_draw(coloured, head, ids, np.ones(len(ids), bool), 90)
    assert ids[np.sort(draw(7))].tolist() == members(coloured, name)
    assert ids[np.sort(draw(8))].tolist() != members(coloured, name)


def test_the_same_command_trains_nothing_again_and_an_interrupted_one_what_is_missing(coloured, caplog):
    validate(coloured, keep=0.5, **OPTIONS)
    first = rows(coloured, "select arm, seed, accuracy, seconds from trainings order by 1, 2")
    with caplog.at_level("INFO", "curate"):
        validate(coloured, keep=0.5, **OPTIONS)
    assert "nothing to do: 'mlp-16' is this validation already (9 trainings)" in caplog.text
    with coloured.writing() as connection:  # as if it had been interrupted before its last arm
        connection.execute("delete from trainings where arm = 'random'")
        connection.execute("delete from class_accuracies where arm = 'random'")
    validate(coloured, keep=0.5, **OPTIONS)
    again = rows(coloured, "select arm, seed, accuracy, seconds from trainings order by 1, 2")
    assert [row[:3] for row in again] == [row[:3] for row in first]
    assert again[:6] == first[:6], "what was trained is kept"
    assert again[6:] != first[6:]


def test_equal_iterations_mean_more_epochs_for_less_data(coloured, tmp_path):
    test = colours(tmp_path, "test", 30, 2)
    assert validate(coloured, keep=0.25, schedule="iterations", test=test, **OPTIONS) == "mlp-16-iterations"
    found = {arm: (epochs, size) for arm, epochs, size in rows(
        coloured, "select arm, any_value(epochs), any_value(num_samples) from trainings group by arm"
    )}  # fmt: skip
    model = models.make("mlp:16")
    taken = {arm: epochs * models.steps(model, size) for arm, (epochs, size) in found.items()}
    assert found["full"][0] == 4
    assert found["pruned"][0] > 8
    for arm in ("pruned", "random"):  # to the nearest pass
        assert taken[arm] == pytest.approx(taken["full"], abs=models.steps(model, found[arm][1]) / 2)


def test_selections_that_exist_are_compared_when_none_are_named(coloured):
    select(coloured, keep=0.5, strategy="random", name="mine")
    validate(coloured, **TRAINING)
    assert rows(coloured, "select distinct selection from trainings where arm = 'pruned'") == [("mine",)]
    with coloured.writing() as connection:
        connection.execute("delete from selections")
    with pytest.raises(CurateError, match="no selection yet: make one with `curate select --keep F`"):
        validate(coloured, **TRAINING)


@pytest.mark.parametrize(("options", "reason"), [
    ({"keep": 1.5}, "--keep 1.5: give a fraction"), ({"keep": 0.5, "strategy": "odd"}, "no strategy called 'odd'"),
    ({"model": "ridge"}, "solved in closed form"), ({"schedule": "hours"}, "--schedule hours: choose one of epochs"),
    ({"seeds": 1}, "--seeds must be at least 2"), ({"selections": ["none"]}, "no selection"),
    ({"keep": None}, "for --keep: give that too"),
])  # fmt: skip
def test_what_cannot_be_is_refused(coloured, options, reason):
    with pytest.raises(CurateError, match=reason):
        validate(coloured, **{"keep": 0.5, **OPTIONS, **options})


def test_what_was_trained_on_is_no_test(coloured):
    (url,) = rows(coloured, "select url from shards where shard_id = 0")[0]
    with pytest.raises(CurateError, match="is among the shards to train on too"):
        validate(coloured, keep=0.5, test=url, **OPTIONS)


def with_trainings(catalog: Catalog, pruned: list[float], random: list[float], full: list[float]) -> Catalog:
    with catalog.writing() as connection:
        for arm, accuracies in (("pruned", pruned), ("random", random), ("full", full)):
            for seed, accuracy in enumerate(accuracies):
                sets.insert(connection, "trainings", {
                    "validation": "v", "arm": arm, "selection": None if arm == "full" else "s", "keep": 0.5, "seed": seed,
                    "num_samples": 5, "epochs": 1, "accuracy": accuracy, "loss": 0.0, "seconds": 0.0,
                })  # fmt: skip
    return catalog


@pytest.mark.parametrize("seeds", [2, 5, 12, 40])
def test_intervals_are_those_of_students_t(catalog, seeds):
    generator = np.random.default_rng(seeds)
    pruned, random, full = (0.7 + 0.01 * generator.standard_normal(seeds) for _ in range(3))
    with_trainings(catalog, pruned.tolist(), random.tolist(), full.tolist())
    (row,) = curate.query(catalog, "from pruned_vs_random").to_pylist()
    for name, other in (("random", random), ("full", full)):
        difference = 100 * (pruned - other)
        assert row[f"over_{name}"] == pytest.approx(difference.mean())
        wanted = stats.t.ppf(0.975, seeds - 1) * stats.sem(difference)
        assert row[f"over_{name}_interval"] == pytest.approx(wanted, rel=2e-3)


def test_a_selection_that_does_much_worse_than_random_is_an_alarm(catalog):
    with_trainings(catalog, [0.20, 0.21, 0.19], [0.75, 0.76, 0.75], [0.80, 0.80, 0.81])
    (verdict,) = verdicts(catalog, "v")
    assert verdict.alarming
    assert "Do not train on this one" in verdict.text


def test_verdicts_are_plain():
    assert _verdict("s", 79.5, -0.2, 0.3, 0.5, 0.2).text == (
        "s: 79.5% right; against everything: no loss found, -0.20 ± 0.30 points; beats random, +0.50 ± 0.20"
    )
    assert "loses, -0.60 ± 0.30 points; no difference from random found" in _verdict("s", 79, -0.6, 0.3, 0.1, 0.2).text
    assert "gains, +0.60" in _verdict("s", 79, 0.6, 0.3, -0.5, 0.2).text
    assert "worse than random, -0.50" in _verdict("s", 79, 0.6, 0.3, -0.5, 0.2).text


def test_a_verdict_on_members_that_are_gone_says_so():
    assert _verdict("s", 79.5, -0.2, 0.3, 0.5, 0.2, replaced=True).text.endswith("made anew since: validate it again")


def test_a_report_of_half_a_validation_is_of_what_has_an_interval(catalog):
    with_trainings(catalog, [0.7], [0.75], [0.80])
    assert verdicts(catalog, "v") == []


def test_random_samples_come_from_the_candidates_that_the_selection_had(coloured):
    select(coloured, keep=0.5, strategy="random", name="inner")
    select(coloured, keep=0.5, strategy="random", within="inner", name="mine")
    select(coloured, keep=0.25, strategy="random", name="inner")
    with pytest.raises(CurateError, match="'mine' was taken from .* candidates, which are .* now: select it anew"):
        validate(coloured, ["mine"], **TRAINING)


def test_empty_shards_are_no_copies_of_each_other(coloured, tmp_path):
    for name in ("empty-train", "empty-test"):
        write_shard(tmp_path / f"{name}.tar", [])
    embed(coloured, str(tmp_path / "empty-train.tar"), encoder="pixels")
    test = [colours(tmp_path, "test", 30, 2), str(tmp_path / "empty-test.tar")]
    assert validate(coloured, keep=0.5, test=test, **OPTIONS) == "mlp-16"


def test_a_copy_of_a_shard_that_was_trained_on_is_no_test(coloured, tmp_path):
    ((url,),) = rows(coloured, "select url from shards limit 1")
    copied = shutil.copy(url, tmp_path / "another-name.tar")
    with pytest.raises(CurateError, match="another-name.tar' is among the shards to train on too"):
        validate(coloured, keep=0.5, test=str(copied), **OPTIONS)


def test_a_corpus_within_the_corpus_is_all_that_is_seen(coloured, tmp_path):
    test = colours(tmp_path, "test", 60, 2)
    small = select(coloured, keep=0.4, strategy="random", balance=0, name="small")
    inside = set(members(coloured, small))
    assert curate.probe(coloured, model="mlp:8", count=2, epochs=2, within="small") == "mlp-8-in-small"
    score(coloured, "el2n")
    assert {
        row[0] for row in rows(coloured, "select sample_id from scores where scoring = 'el2n' and score is not null")
    } == inside
    options = {**OPTIONS, "scoring": "el2n"}
    assert validate(coloured, keep=0.5, within="small", test=test, **options) == "mlp-16-in-small"
    pruned = set(members(coloured, "el2n-hardest-0.5-in-small"))
    assert len(pruned) == 60
    assert pruned < inside
    counts = dict(rows(coloured, "select arm, any_value(num_samples) from trainings group by arm"))
    assert counts == {"full": 120, "pruned": 60, "random": 60}
    with pytest.raises(CurateError, match="no selection called 'none'"):
        select(coloured, keep=0.5, scoring="el2n", within="none")


def test_networks_of_images_validate_too(coloured):
    assert validate(coloured, keep=0.5, scoring="supervised_prototypes", model="conv:16", seeds=2, epochs=1) == "conv-16"
    assert rows(coloured, "select arm, count(*) from trainings group by arm order by arm") == [
        ("full", 2),
        ("pruned", 2),
        ("random", 2),
    ]


@pytest.mark.parametrize("model", ["mlp:16", "conv:16"])
def test_what_was_trained_is_fine_tuned_on_another_task_and_tested_for_it(coloured, tmp_path, model):
    other = stripes(tmp_path, "other", 160, 3)
    options = {"keep": 0.5, "scoring": "supervised_prototypes", "model": model, "seeds": 2, "epochs": 2}
    name = validate(coloured, transfer=other, test=stripes(tmp_path, "tests", 60, 4), **options)
    assert name == f"{model.replace(':', '-')}-transfer"
    head = rows(coloured, "select num_test, num_samples, num_trainings, transfer from validations")
    assert head == [(60, 300, 6, [other])]
    assert {label for (label,) in rows(coloured, "select distinct label from class_accuracies")} == {"dark", "light"}
    assert rows(coloured, "select min(accuracy) > 0.9 from trainings") == [(True,)], "the other task was learned"
    assert rows(coloured, "select count(*) from samples") == [(300,)]
    with pytest.raises(CurateError, match="is among the shards to train on too"):
        validate(coloured, transfer=other, test=other, **options)
    validate(coloured, transfer=other, name="held", **options)
    ((num_test,),) = rows(coloured, "select num_test from validations where validation = 'held'")
    assert 15 <= num_test <= 50
    with pytest.raises(CurateError, match="no validated selection|validate"):
        select(coloured, keep="auto", scoring="supervised_prototypes")


def test_selections_of_one_size_share_their_random_samples(coloured, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(arms, "Arm", lambda *words: trained.append(words[0]) or arms_of(*words))
    arms_of = validating.Arm
    validate(coloured, keep=[0.5], strategy=["hardest", "easiest"], test=colours(tmp_path, "test", 30, 2), **OPTIONS)
    assert sorted(trained) == ["full", "pruned", "pruned", "random"]
    pairs = rows(coloured, "select seed, count(*), count(distinct accuracy) from trainings where arm = 'random' group by seed")
    assert [pair[1:] for pair in pairs] == [(2, 1)] * 3
    assert rows(coloured, "select count(*) from pruned_vs_random where seeds = 3") == [(2,)]
