import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import insert_training_run, members, rows, write_shard
from PIL import Image
from scipy import stats

import curate
from curate import models
from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.errors import CurateError, OptionError
from curate.stages.embed.stage import embed
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.validate import arms
from curate.stages.validate.arms import ArmBuilder
from curate.stages.validate.split import held_out_by_key
from curate.stages.validate.stage import validate
from curate.stages.validate.verdicts import make_verdict, read_verdicts
from curate.stages.validate.worker import Arm


def encode(pixels: np.ndarray) -> bytes:
    """A PNG of pixels, which may be out of range."""
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def write_colours(folder: Path, name: str, count: int, seed: int) -> str:
    """One shard sorted by class: three colours with much noise."""
    generator = np.random.default_rng(seed)
    samples = []
    for position in range(count):
        label = 3 * position // count
        noise = generator.normal(0, 35, 3) + generator.normal(0, 30, (6, 6, 3))
        image = encode(90 + 60 * np.eye(3)[label] + noise)
        samples.append((f"{name}{position:04d}", {"png": image, "cls": b"%d" % label}))
    return str(write_shard(folder / f"{name}.tar", samples))


def write_dark_and_light(folder: Path, name: str, count: int, seed: int) -> str:
    """One shard of another task: dark images and light ones."""
    generator = np.random.default_rng(seed)
    samples = []
    for position in range(count):
        is_light = position % 2
        image = encode(60 + 130 * is_light + generator.normal(0, 10, (6, 6, 3)))
        label = b"light" if is_light else b"dark"
        samples.append((f"{name}{position:04d}", {"png": image, "cls": label}))
    return str(write_shard(folder / f"{name}.tar", samples))


@pytest.fixture
def coloured(tmp_path: Path) -> Catalog:
    """A catalog of 300 colours, scored by supervised prototypes."""
    catalog = Catalog(tmp_path / "catalog")
    shards = [write_colours(tmp_path, "a", 150, 0), write_colours(tmp_path, "b", 150, 1)]
    embed(catalog, shards, encoder="pixels")
    score(catalog, "supervised_prototypes")
    return catalog


def load_sample_ids(catalog: Catalog) -> np.ndarray:
    samples = rows(catalog, "select sample_id from samples order by sample_id")
    return np.array([sample_id for (sample_id,) in samples])


TRAINING = {"model": "mlp:16", "seeds": 3, "epochs": 4}
OPTIONS = {"scoring": "supervised_prototypes"} | TRAINING


def test_every_arm_trains_as_often_and_pruned_and_random_on_as_many(coloured, tmp_path):
    test = write_colours(tmp_path, "test", 90, 2)
    strategies = ["hardest", "easiest"]
    name = validate(coloured, keep=[0.5, 0.2], strategy=strategies, test=test, **OPTIONS)
    assert name == "mlp-16"
    counts = rows(
        coloured,
        "select arm, selection, num_samples, count(*), count(distinct seed) "
        "from training_runs group by all",
    )
    expected = [("full", None, 300, 3, 3)]
    expected += [
        (arm, f"supervised_prototypes-{strategy}-{keep}", num_samples, 3, 3)
        for keep, num_samples in ((0.5, 150), (0.2, 60))
        for strategy in strategies
        for arm in ("pruned", "random")
    ]
    assert sorted(counts, key=str) == sorted(expected, key=str)
    sql = "select num_test, num_samples, num_training_runs from validations"
    assert rows(coloured, sql) == [(90, 300, 27)]
    assert rows(
        coloured,
        "select min(accuracy) > 0.5, max(accuracy) <= 1 from training_runs where arm = 'full'",
    ) == [(True, True)]


def test_accuracies_by_class_add_up_to_the_accuracy(coloured):
    validate(coloured, keep=0.5, **OPTIONS)
    ((difference,),) = rows(
        coloured,
        "select max(abs(accuracy - mean)) from training_runs join (select arm, selection, seed, "
        "sum(accuracy * num_test) / sum(num_test) as mean "
        "from class_accuracies group by all) as by_class "
        "on training_runs.arm = by_class.arm and training_runs.seed = by_class.seed "
        "and training_runs.selection is not distinct from by_class.selection",
    )
    assert difference == pytest.approx(0, abs=1e-12)


def test_without_test_shards_a_fifth_is_held_out_by_key_from_every_class(coloured):
    validate(coloured, keep=0.5, **OPTIONS)
    ((num_test, num_samples),) = rows(coloured, "select num_test, num_samples from validations")
    assert num_test + num_samples == 300
    assert 40 <= num_test <= 80
    tested = rows(coloured, "select distinct label from class_accuracies where num_test > 5")
    assert set(tested) == {("0",), ("1",), ("2",)}
    assert held_out_by_key(coloured, load_sample_ids(coloured)).sum() == num_test


def test_a_random_arm_is_what_select_draws(coloured, tmp_path):
    name = select(coloured, keep=0.3, strategy="random", balance=0.8, seed=7)
    ids = load_sample_ids(coloured)
    builder = ArmBuilder(
        coloured,
        models.make_model("mlp:16"),
        [7, 8],
        1,
        ids,
        np.ones(len(ids), bool),
        tmp_path,
        equal_iterations=False,
    )
    draw = builder._random_draw(coloured.require(SelectionRecord, name), 90)
    assert ids[np.sort(draw(7))].tolist() == members(coloured, name)
    assert ids[np.sort(draw(8))].tolist() != members(coloured, name)


def test_the_same_command_trains_nothing_again_and_an_interrupted_one_what_is_missing(
    coloured, caplog
):
    validate(coloured, keep=0.5, **OPTIONS)
    first = rows(coloured, "select arm, seed, accuracy, seconds from training_runs order by 1, 2")
    with caplog.at_level("INFO", "curate"):
        validate(coloured, keep=0.5, **OPTIONS)
    assert "nothing to do: 'mlp-16' is this validation already (9 training runs)" in caplog.text
    with coloured.writing() as connection:  # as if it had been interrupted before its last arm
        connection.execute("delete from training_runs where arm = 'random'")
        connection.execute("delete from class_accuracies where arm = 'random'")
    validate(coloured, keep=0.5, **OPTIONS)
    again = rows(coloured, "select arm, seed, accuracy, seconds from training_runs order by 1, 2")
    assert [row[:3] for row in again] == [row[:3] for row in first]
    assert again[:6] == first[:6], "what was trained is kept"
    assert again[6:] != first[6:]


def test_equal_iterations_mean_more_epochs_for_less_data(coloured, tmp_path):
    test = write_colours(tmp_path, "test", 30, 2)
    name = validate(coloured, keep=0.25, schedule="iterations", test=test, **OPTIONS)
    assert name == "mlp-16-iterations"
    trained = rows(
        coloured,
        "select arm, any_value(epochs), any_value(num_samples) from training_runs group by arm",
    )
    model = models.make_model("mlp:16")
    epochs = {arm: num_epochs for arm, num_epochs, _ in trained}
    steps = {arm: models.steps_per_epoch(model, num_samples) for arm, _, num_samples in trained}
    assert epochs["full"] == 4
    assert epochs["pruned"] > 8
    for arm in ("pruned", "random"):  # to the nearest epoch
        assert epochs[arm] * steps[arm] == pytest.approx(
            epochs["full"] * steps["full"], abs=steps[arm] / 2
        )


def test_selections_that_exist_are_compared_when_none_are_named(coloured):
    select(coloured, keep=0.5, strategy="random", name="mine")
    validate(coloured, **TRAINING)
    assert rows(coloured, "select distinct selection from training_runs where arm = 'pruned'") == [
        ("mine",)
    ]
    with coloured.writing() as connection:
        connection.execute("delete from selections")
    with pytest.raises(
        CurateError, match="no selection yet: make one with `curate select --keep F`"
    ):
        validate(coloured, **TRAINING)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep": 1.5}, "--keep 1.5: give a number above 0 and up to 1"),
        ({"keep": 0.5, "strategy": "odd"}, "no strategy called 'odd'"),
        ({"model": "ridge"}, "solved in closed form"),
        ({"schedule": "hours"}, "--schedule hours: choose one of epochs"),
        ({"seeds": 1}, "--seeds 1: give a whole number from 2"),
        ({"keep": None}, "for --keep: give that too"),
    ],
)
def test_wrong_options_name_the_remedy(coloured, options, reason):
    with pytest.raises(OptionError, match=reason):
        validate(coloured, **{"keep": 0.5, **OPTIONS, **options})


def test_a_selection_that_does_not_exist_is_named(coloured):
    with pytest.raises(CurateError, match="no selection"):
        validate(coloured, ["none"], keep=0.5, **OPTIONS)


def test_what_was_trained_on_is_no_test(coloured):
    ((url,),) = rows(coloured, "select url from shards where shard_id = 0")
    with pytest.raises(CurateError, match="is among the shards to train on too"):
        validate(coloured, keep=0.5, test=url, **OPTIONS)


def add_training_runs(
    catalog: Catalog, pruned: list[float], random: list[float], full: list[float]
) -> None:
    """Runs of a validation v of a selection s, with one accuracy a seed."""
    with catalog.writing() as connection:
        for arm, accuracies in (("pruned", pruned), ("random", random), ("full", full)):
            selection = None if arm == "full" else "s"
            for seed, accuracy in enumerate(accuracies):
                insert_training_run(connection, "v", arm, selection, seed, accuracy)


@pytest.mark.parametrize("seeds", [2, 5, 12, 40])
def test_intervals_are_those_of_students_t(catalog, seeds):
    generator = np.random.default_rng(seeds)
    pruned, random, full = (0.7 + 0.01 * generator.standard_normal(seeds) for _ in range(3))
    add_training_runs(catalog, pruned.tolist(), random.tolist(), full.tolist())
    (row,) = curate.query(catalog, "from pruned_vs_random").to_pylist()
    for name, accuracies in (("random", random), ("full", full)):
        difference = 100 * (pruned - accuracies)
        assert row[f"delta_vs_{name}"] == pytest.approx(difference.mean())
        half_width = stats.t.ppf(0.975, seeds - 1) * stats.sem(difference)
        assert row[f"delta_vs_{name}_interval"] == pytest.approx(half_width, rel=2e-3)


def test_a_selection_that_does_much_worse_than_random_is_an_alarm(catalog):
    add_training_runs(catalog, [0.20, 0.21, 0.19], [0.75, 0.76, 0.75], [0.80, 0.80, 0.81])
    (verdict,) = read_verdicts(catalog, "v")
    assert verdict.is_alarming
    assert "Do not train on this one" in verdict.text


@pytest.mark.parametrize(
    ("loss", "gain", "text"),
    [
        (
            -0.2,
            0.5,
            "s: 79.5% right; against everything: no loss found, -0.20 ± 0.30 points; "
            "beats random, +0.50 ± 0.20",
        ),
        (
            -0.6,
            0.1,
            "s: 79.5% right; against everything: loses, -0.60 ± 0.30 points; "
            "no difference from random found, +0.10 ± 0.20",
        ),
        (
            0.6,
            -0.5,
            "s: 79.5% right; against everything: gains, +0.60 ± 0.30 points; "
            "worse than random, -0.50 ± 0.20",
        ),
    ],
)
def test_verdicts_are_plain(loss, gain, text):
    assert make_verdict("s", 79.5, loss, 0.3, gain, 0.2).text == text


def test_a_verdict_on_members_that_were_replaced_says_so():
    verdict = make_verdict("s", 79.5, -0.2, 0.3, 0.5, 0.2, is_replaced=True)
    assert verdict.text.endswith("made anew since: validate it again")


def test_half_a_validation_has_no_verdict_without_an_interval(catalog):
    add_training_runs(catalog, [0.7], [0.75], [0.80])
    assert read_verdicts(catalog, "v") == []


def test_random_samples_come_from_the_candidates_that_the_selection_had(coloured):
    select(coloured, keep=0.5, strategy="random", name="inner")
    select(coloured, keep=0.5, strategy="random", within="inner", name="mine")
    select(coloured, keep=0.25, strategy="random", name="inner")
    with pytest.raises(
        CurateError, match="'mine' was taken from .* candidates, which are .* now: select it anew"
    ):
        validate(coloured, ["mine"], **TRAINING)


def test_empty_shards_are_no_copies_of_each_other(coloured, tmp_path):
    for name in ("empty-train", "empty-test"):
        write_shard(tmp_path / f"{name}.tar", [])
    embed(coloured, str(tmp_path / "empty-train.tar"), encoder="pixels")
    test = [write_colours(tmp_path, "test", 30, 2), str(tmp_path / "empty-test.tar")]
    assert validate(coloured, keep=0.5, test=test, **OPTIONS) == "mlp-16"


def test_a_copy_of_a_shard_that_was_trained_on_is_no_test(coloured, tmp_path):
    ((url,),) = rows(coloured, "select url from shards limit 1")
    copy = shutil.copy(url, tmp_path / "another-name.tar")
    with pytest.raises(CurateError, match="another-name.tar' is among the shards to train on too"):
        validate(coloured, keep=0.5, test=str(copy), **OPTIONS)


def test_a_corpus_within_the_corpus_is_all_that_is_seen(coloured, tmp_path):
    test = write_colours(tmp_path, "test", 60, 2)
    select(coloured, keep=0.4, strategy="random", balance=0, name="small")
    inside = set(members(coloured, "small"))
    probe = curate.probe(coloured, model="mlp:8", count=2, epochs=2, within="small")
    assert probe == "mlp-8-in-small"
    score(coloured, "el2n")
    sql = "select sample_id from scores where scoring = 'el2n' and score is not null"
    assert {sample_id for (sample_id,) in rows(coloured, sql)} == inside
    options = {**OPTIONS, "scoring": "el2n"}
    assert validate(coloured, keep=0.5, within="small", test=test, **options) == "mlp-16-in-small"
    pruned = set(members(coloured, "el2n-hardest-0.5-in-small"))
    assert len(pruned) == 60
    assert pruned < inside
    sql = "select arm, any_value(num_samples) from training_runs group by arm"
    assert dict(rows(coloured, sql)) == {"full": 120, "pruned": 60, "random": 60}
    with pytest.raises(CurateError, match="no selection called 'none'"):
        select(coloured, keep=0.5, scoring="el2n", within="none")


def test_networks_of_images_validate_too(coloured):
    options = {"model": "conv:16", "seeds": 2, "epochs": 1}
    name = validate(coloured, keep=0.5, scoring="supervised_prototypes", **options)
    assert name == "conv-16"
    assert rows(coloured, "select arm, count(*) from training_runs group by arm order by arm") == [
        ("full", 2),
        ("pruned", 2),
        ("random", 2),
    ]


@pytest.mark.parametrize("model", ["mlp:16", "conv:16"])
def test_what_was_trained_is_fine_tuned_on_another_task_and_tested_for_it(
    coloured, tmp_path, model
):
    other = write_dark_and_light(tmp_path, "other", 160, 3)
    test = write_dark_and_light(tmp_path, "tests", 60, 4)
    options = {
        "keep": 0.5,
        "scoring": "supervised_prototypes",
        "model": model,
        "seeds": 2,
        "epochs": 2,
    }
    name = validate(coloured, transfer=other, test=test, **options)
    assert name == f"{model.replace(':', '-')}-transfer"
    sql = "select num_test, num_samples, num_training_runs, transfer from validations"
    assert rows(coloured, sql) == [(60, 300, 6, [other])]
    tested = rows(coloured, "select distinct label from class_accuracies")
    assert set(tested) == {("dark",), ("light",)}
    assert rows(coloured, "select min(accuracy) > 0.9 from training_runs") == [(True,)], (
        "the other task was learned"
    )
    assert rows(coloured, "select count(*) from samples") == [(300,)]


def test_without_test_shards_a_fifth_of_the_other_task_is_held_out(coloured, tmp_path):
    other = write_dark_and_light(tmp_path, "other", 160, 3)
    options = {"keep": 0.5, "scoring": "supervised_prototypes", "model": "mlp:16", "seeds": 2}
    with pytest.raises(CurateError, match="is among the shards to train on too"):
        validate(coloured, transfer=other, test=other, epochs=2, **options)
    validate(coloured, transfer=other, name="held-out", epochs=2, **options)
    sql = "select num_test from validations where validation = 'held-out'"
    ((num_test,),) = rows(coloured, sql)
    assert 15 <= num_test <= 50
    with pytest.raises(CurateError, match="no validated selection|validate"):
        select(coloured, keep="auto", scoring="supervised_prototypes")


def test_selections_of_one_size_share_their_random_samples(coloured, tmp_path, monkeypatch):
    names = []

    def make_arm(name: str, *arguments: object) -> Arm:
        names.append(name)
        return Arm(name, *arguments)

    monkeypatch.setattr(arms, "Arm", make_arm)
    test = write_colours(tmp_path, "test", 30, 2)
    validate(coloured, keep=0.5, strategy=["hardest", "easiest"], test=test, **OPTIONS)
    assert sorted(names) == ["full", "pruned", "pruned", "random"]
    counts = rows(
        coloured,
        "select count(*), count(distinct accuracy) "
        "from training_runs where arm = 'random' group by seed",
    )
    assert counts == [(2, 1)] * 3
    assert rows(coloured, "select count(*) from pruned_vs_random where seeds = 3") == [(2,)]
