import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import add_scoring, members, rows, write_shard
from PIL import Image

import curate
from curate import models
from curate.catalog import samples
from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.errors import CurateError, OptionError
from curate.formats.sample_ids import are_members
from curate.formats.samples import iterate_samples
from curate.formats.tar import TarReader
from curate.package_data import read_sql
from curate.stages.embed.stage import embed
from curate.stages.evidence.verdicts import read_verdicts
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.validate import arms
from curate.stages.validate import stage as validate_stage
from curate.stages.validate.arms import ArmBuilder, _write_subsets
from curate.stages.validate.split import held_out_by_key
from curate.stages.validate.stage import validate
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


@pytest.fixture(scope="module")
def coloured_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coloured")
    catalog = Catalog(folder / "catalog")
    shards = [write_colours(folder, "a", 150, 0), write_colours(folder, "b", 150, 1)]
    embed(catalog, shards, encoder="pixels")
    score(catalog, "supervised_prototypes")
    return catalog.path


@pytest.fixture
def coloured(coloured_once: Path, tmp_path: Path) -> Catalog:
    """A catalog of 300 colours, scored by supervised prototypes; a copy for each test."""
    shutil.copytree(coloured_once, tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


def load_sample_ids(catalog: Catalog) -> np.ndarray:
    samples = rows(catalog, "select sample_id from samples order by sample_id")
    return np.array([sample_id for (sample_id,) in samples])


def load_classes(catalog: Catalog) -> list[int]:
    return [
        int(label) for (label,) in rows(catalog, "select label from samples order by sample_id")
    ]


TRAINING = {"model": "mlp:16", "seeds": 3, "epochs": 4}
OPTIONS = {"scoring": "supervised_prototypes"} | TRAINING


def test_every_arm_trains_as_often_and_pruned_and_random_on_as_many(coloured, tmp_path):
    test = write_colours(tmp_path, "test", 90, 2)
    strategies = ["hardest", "easiest"]
    name = validate(coloured, keep=[0.5, 0.2], strategy=strategies, test=test, **OPTIONS)
    assert name == "mlp-16-epochs4"
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


def test_a_random_arm_has_the_selections_quotas_and_is_drawn_apart_from_select(coloured, tmp_path):
    name = select(coloured, keep=0.3, strategy="random", balance=0.8, seed=7)
    ids = load_sample_ids(coloured)
    builder = ArmBuilder(
        coloured,
        ids,
        np.ones(len(ids), bool),
        tmp_path,
        epochs_for=lambda num_rows: 1,
        stack_size=50,
    )
    draw = builder._random_draw(coloured.require(SelectionRecord, name), 90)
    drawn = draw(7)
    assert len(drawn) == 90
    assert (np.bincount(np.array(load_classes(coloured))[drawn]) >= 24).all(), "0.8 · 30 each"
    assert drawn.tolist() == draw(7).tolist() != draw(8).tolist()
    # Otherwise the difference of such a selection from random would be 0 by construction.
    assert ids[np.sort(drawn)].tolist() != members(coloured, name)


def test_the_same_command_trains_nothing_again_and_an_interrupted_one_what_is_missing(
    coloured, caplog
):
    validate(coloured, keep=0.5, **OPTIONS)
    first = rows(coloured, "select arm, seed, accuracy, seconds from training_runs order by 1, 2")
    with caplog.at_level("INFO", "curate"):
        validate(coloured, keep=0.5, **OPTIONS)
    assert "nothing to do: 'mlp-16-epochs4' has these arms already (9 training runs)" in caplog.text
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
    assert name == "mlp-16-iterations-epochs4"
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
    write_colours(tmp_path, "coloured-test", 30, 2)
    test = str(tmp_path / "*-test.tar")
    assert validate(coloured, keep=0.5, test=test, **OPTIONS) == "mlp-16-epochs4"


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
    assert probe == "mlp-8-epochs2-in-small"
    score(coloured, "el2n")
    sql = "select sample_id from scores where scoring = 'el2n' and score is not null"
    assert {sample_id for (sample_id,) in rows(coloured, sql)} == inside
    options = {**OPTIONS, "scoring": "el2n"}
    assert (
        validate(coloured, keep=0.5, within="small", test=test, **options)
        == "mlp-16-epochs4-in-small"
    )
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
    assert name == "conv-16-epochs1"
    assert rows(coloured, "select arm, count(*) from training_runs group by arm order by arm") == [
        ("full", 2),
        ("pruned", 2),
        ("random", 2),
    ]


@pytest.mark.parametrize("model", ["mlp:16", "conv:16"])
def test_what_was_trained_is_fine_tuned_on_another_task_and_tested_for_it(
    coloured, tmp_path, model
):
    other = write_dark_and_light(tmp_path, "other", 80, 3)
    test = write_dark_and_light(tmp_path, "tests", 60, 4)
    options = {
        "keep": 0.5,
        "scoring": "supervised_prototypes",
        "model": model,
        "seeds": 2,
        "epochs": 2,
    }
    name = validate(coloured, transfer=other, test=test, **options)
    assert name == f"{model.replace(':', '-')}-epochs2-transfer"
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


def test_a_validation_grows_and_what_was_trained_stays(coloured, tmp_path, caplog):
    test = write_colours(tmp_path, "test", 120, 2)
    name = validate(coloured, keep=0.8, test=test, **OPTIONS)
    sql = "select arm, selection, seed, accuracy, seconds from training_runs order by all"
    first = rows(coloured, sql)
    assert validate(coloured, keep=0.5, test=test, **{**OPTIONS, "seeds": 5}) == name
    grown = rows(coloured, sql)
    assert set(first) < set(grown), "nothing was trained again"
    counts = rows(
        coloured, "select arm, selection, count(*) from training_runs group by all order by all"
    )
    small, large = (f"supervised_prototypes-hardest-{keep}" for keep in (0.5, 0.8))
    assert counts == [
        ("full", None, 5),
        ("pruned", small, 5),
        ("pruned", large, 3),
        ("random", small, 5),
        ("random", large, 3),
    ]
    sql = "select selection, baseline, seeds from comparisons order by all"
    assert rows(coloured, sql) == [
        (selection, baseline, seeds)
        for selection, seeds in ((small, 5), (large, 3))
        for baseline in ("full", "random")
    ]
    assert rows(coloured, "select seeds, num_training_runs from validations") == [(5, 21)]
    with caplog.at_level("INFO", "curate"):
        validate(coloured, keep=[0.8, 0.5], test=test, **OPTIONS)
    assert f"nothing to do: '{name}' has these arms already (21 training runs)" in caplog.text


def test_a_growth_that_was_killed_ends_in_the_same_table(coloured, tmp_path):
    """As if two arms had been lost on the way: the same runs, and the same accuracies."""
    validate(coloured, keep=0.8, **OPTIONS)
    validate(coloured, keep=0.5, **{**OPTIONS, "seeds": 5})
    sql = "select * exclude (seconds) from training_runs order by all"
    comparisons = rows(coloured, "from comparisons order by all")
    expected = rows(coloured, sql)
    for condition in ("arm = 'pruned' and seed > 2", "arm = 'random' and keep = 0.5"):
        with coloured.writing() as connection:
            connection.execute(f"delete from training_runs where {condition}")
        validate(coloured, keep=0.5, **{**OPTIONS, "seeds": 5})
        assert rows(coloured, sql) == expected
        assert rows(coloured, "from comparisons order by all") == comparisons


def test_another_setting_is_another_validation_and_says_so(coloured, tmp_path, caplog):
    test = write_colours(tmp_path, "test", 120, 2)
    first = validate(coloured, keep=0.5, **OPTIONS)
    with caplog.at_level("INFO", "curate"):
        second = validate(coloured, keep=0.5, test=test, **OPTIONS)
    assert (first, second) == ("mlp-16-epochs4", "mlp-16-epochs4-2")
    assert "'mlp-16-epochs4' has another setting: this validation is" in caplog.text
    assert validate(coloured, keep=0.5, **OPTIONS) == first
    assert validate(coloured, keep=0.5, test=test, **OPTIONS) == second
    sql = "select validation, count(*) from training_runs group by all order by all"
    assert rows(coloured, sql) == [(first, 9), (second, 9)]
    reason = r"'mlp-16-epochs4' has another setting \(test\): choose another --name"
    with pytest.raises(CurateError, match=reason):
        validate(coloured, keep=0.5, test=test, name=first, **OPTIONS)


def test_a_corpus_that_has_grown_is_validated_anew(coloured, tmp_path, caplog):
    validate(coloured, keep=0.5, **OPTIONS)
    embed(coloured, write_colours(tmp_path, "c", 30, 5), encoder="pixels")
    score(coloured, "supervised_prototypes")
    validate(coloured, keep=0.5, **OPTIONS)
    assert "is of an earlier state of the corpus or the code: its 9 training runs" in caplog.text
    assert rows(coloured, "select num_samples + num_test from validations") == [(330,)]
    assert rows(coloured, "select count(*) from training_runs") == [(9,)]


def test_an_arm_smaller_than_its_classes_and_a_task_of_one_class_are_refused(coloured, tmp_path):
    score(coloured, "random")
    with pytest.raises(CurateError, match="'random-hardest-0.005-balance0' has [12] samples? to"):
        validate(coloured, keep=0.005, balance=0, scoring="random", **TRAINING)
    same = [(f"{index}", {"png": encode(np.full((6, 6, 3), 9)), "cls": b"a"}) for index in range(9)]
    transfer = str(write_shard(tmp_path / "same.tar", same))
    with pytest.raises(CurateError, match="the task of --transfer has one class, 'a'"):
        validate(coloured, keep=0.5, transfer=transfer, **OPTIONS)
    assert rows(coloured, "select count(*) from validations") == [(0,)]


def test_test_samples_with_a_near_duplicate_in_the_corpus_are_counted(coloured, tmp_path, caplog):
    ((url,),) = rows(coloured, "select url from shards where shard_id = 0")
    fresh = write_colours(tmp_path, "fresh", 60, 9)
    with Path(url).open("rb") as first, Path(fresh).open("rb") as second:
        samples = [
            (f"{sample.key}-{number}", sample.members)
            for number, stream in enumerate((first, second))
            for sample in itertools.islice(iterate_samples(TarReader(stream)), 5 + 55 * number)
        ]
    mixed = str(write_shard(tmp_path / "mixed.tar", samples))
    validate(coloured, keep=0.5, test=mixed, **OPTIONS)
    assert "5 of 65 test samples examined have a near-duplicate" in caplog.text
    caplog.clear()
    validate(coloured, keep=0.5, test=fresh, **OPTIONS)
    assert "near-duplicate" not in caplog.text


def test_a_selection_made_anew_leaves_nothing_of_its_old_runs(coloured, tmp_path):
    test = write_colours(tmp_path, "test", 120, 2)
    select(coloured, keep=0.5, scoring="supervised_prototypes", name="mine")
    select(coloured, keep=0.6, scoring="supervised_prototypes", name="other")
    validate(coloured, ["mine", "other"], test=test, **TRAINING)
    select(coloured, keep=0.4, scoring="supervised_prototypes", name="mine")
    name = validate(coloured, ["mine"], test=test, **{**TRAINING, "seeds": 2})
    sql = "select selection, count(*) from {} where selection is not null group by 1 order by 1"
    assert rows(coloured, sql.format("training_runs")) == [("mine", 4), ("other", 6)]
    assert rows(coloured, sql.format("class_accuracies")) == [("mine", 12), ("other", 18)]
    assert rows(coloured, sql.format("comparisons")) == [("mine", 2), ("other", 2)]
    assert rows(coloured, "select num_training_runs from validations") == [(13,)]
    assert [verdict.comparison.seeds for verdict in read_verdicts(coloured, name)] == [3, 3, 2, 2]


def test_an_interrupted_validation_is_no_evidence_until_it_is_whole(coloured, tmp_path):
    """Otherwise the fractions that are there might be tested without the larger ones."""
    test = write_colours(tmp_path, "test", 120, 2)
    options = {**OPTIONS, "test": test, "tolerance": 50}
    validate(coloured, keep=[0.8, 0.5], **options)
    chosen = select(coloured, keep="auto")
    with coloured.writing() as connection:  # as if it had been killed after 0.5
        connection.execute("delete from training_runs where keep = 0.8")
        connection.execute("delete from comparisons where selection like '%0.8'")
    with pytest.raises(CurateError, match="made in part only: it was interrupted"):
        select(coloured, keep="auto")
    validate(coloured, keep=0.5, **options)  # all that is wanted now
    assert select(coloured, keep="auto") == "supervised_prototypes-hardest-0.5"
    validate(coloured, keep=[0.8, 0.5], **options)
    assert select(coloured, keep="auto") == chosen


def test_a_name_that_another_process_takes_meanwhile_is_left_to_it(coloured, tmp_path, monkeypatch):
    """The second process has chosen its name before the first one wrote its validation."""
    test = write_colours(tmp_path, "test", 120, 2)
    validate(coloured, keep=0.5, test=test, **OPTIONS)
    before = rows(coloured, "from training_runs order by all")
    chosen = iter(["mlp-16-epochs4"])
    choose = validate_stage.choose_name
    monkeypatch.setattr(
        validate_stage, "choose_name", lambda *arguments: next(chosen, None) or choose(*arguments)
    )
    with pytest.raises(CurateError, match="has just taken the name 'mlp-16-epochs4'"):
        validate(coloured, keep=0.5, **OPTIONS)
    assert rows(coloured, "from training_runs order by all") == before


def test_what_changes_between_its_choice_and_its_training_is_not_trained(coloured, monkeypatch):
    build = ArmBuilder.build

    def build_and_change(self, *arguments):
        built = build(self, *arguments)
        with coloured.writing() as connection:
            connection.execute("update selections set fingerprint = 'another'")
        return built

    monkeypatch.setattr(ArmBuilder, "build", build_and_change)
    with pytest.raises(CurateError, match="-0.5' was changed in this moment: run the same"):
        validate(coloured, keep=0.5, **OPTIONS)
    assert rows(coloured, "select count(*) from training_runs") == [(0,)]


def test_several_test_sets_are_tested_with_one_training(coloured, tmp_path):
    tests = [write_colours(tmp_path, "one", 120, 2), write_colours(tmp_path, "two", 150, 3)]
    name = validate(coloured, keep=0.5, test=[*tests, tests[0]], **OPTIONS)
    sql = "select test, num_test, count(*) from training_runs group by all order by num_test"
    assert rows(coloured, sql) == [(tests[0], 120, 9), (tests[1], 150, 9)]
    sql = "select num_test, num_training_runs from validations"
    assert rows(coloured, sql) == [(270, 9)]
    verdicts = read_verdicts(coloured, name)
    assert {verdict.comparison.test for verdict in verdicts} == set(tests)
    assert all(f"on {verdict.comparison.test}" in verdict.text for verdict in verdicts)
    assert rows(coloured, "select distinct num_test from comparisons order by 1") == [
        (120,),
        (150,),
    ]
    with coloured.reading() as connection:  # what `fit` draws is of the first test set
        parameters = {"validations": [name]}
        classes = connection.execute(read_sql("stages/fit_classes"), parameters).fetchall()
    sql = (
        "select label, 100 * avg(accuracy) from class_accuracies "
        "where arm = 'pruned' and test = ? group by label order by label"
    )
    assert [(label, pruned) for _, label, pruned, *_ in classes] == rows(coloured, sql, tests[0])


def test_clusters_of_another_embedding_are_predicted_where_there_are_no_labels(tmp_path, caplog):
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, write_colours(tmp_path, "a", 300, 0), encoder="pixels", label="json:none")
    embed(catalog, str(tmp_path / "a.tar"), encoder="pixels@2", label="json:none")
    curate.cluster(catalog, embedding="pixels@2", k=3, name="colours")
    curate.cluster(catalog, embedding="pixels", k=4, name="own")
    score(catalog, "ssl_prototypes", clustering="own")
    with caplog.at_level("INFO", "curate"):
        options = {"scoring": "ssl_prototypes-own", "embedding": "pixels", **TRAINING}
        name = validate(catalog, keep=0.5, **options)
    assert name == "mlp-16-clusters-epochs4"
    assert "no labels or captions, but clusters of another embedding" in caplog.text
    sql = "select task, setting->>'clustering' from validations"
    assert rows(catalog, sql) == [("clusters", "colours")]
    assert rows(catalog, "select min(accuracy) > 0.5 from training_runs where arm = 'full'") == [
        (True,)
    ]
    with pytest.raises(OptionError, match="--task clusters tests on held-out samples"):
        validate(catalog, keep=0.5, task="clusters", test="x.tar")


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


def write_captioned(folder: Path, name: str, count: int, seed: int) -> str:
    """One shard of images that are dark or light, red or blue, and whose captions say so."""
    generator = np.random.default_rng(seed)
    samples = []
    for position in range(count):
        level, colour = int(generator.integers(8)), position % 2
        pixels = np.zeros((6, 6, 3))
        pixels[..., 2 * colour] = 40 + 25 * level
        image = encode(pixels + generator.normal(0, 4, (6, 6, 3)))
        caption = f"a {('red', 'blue')[colour]} square of level {'abcdefgh'[level]}"
        samples.append((f"{name}{position:04d}", {"png": image, "txt": caption.encode()}))
    return str(write_shard(folder / f"{name}.tar", samples))


def test_coverage_trains_nothing_and_sees_a_selection_that_misses_a_colour(tmp_path):
    """Without labels: a selection of the red images leaves the blue ones uncovered."""
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, write_captioned(tmp_path, "a", 600, 0), encoder="pixels")
    select(catalog, keep=1.0, strategy="random", where="caption like '%red%'", name="red")
    with catalog.writing() as connection:  # as if it had been taken from everything
        connection.execute("update selections set where_sql = null, num_candidates = 600")
    name = validate(catalog, ["red"], seeds=3)
    assert name == "coverage"
    against_full, against_random = read_verdicts(catalog, name)
    assert against_full.comparison.baseline_accuracy == pytest.approx(95, abs=1)
    assert against_full.word == against_random.word == "worse"
    sql = (
        "select arm, max(epochs), avg(loss), avg(distance_99) "
        "from training_runs group by arm order by arm"
    )
    (_, epochs, full, _), (_, _, pruned, pruned_far), (_, _, random, random_far) = rows(
        catalog, sql
    )
    assert epochs == 0
    assert full < random < pruned
    assert random_far < pruned_far
    assert validate(catalog, ["red"], seeds=3) == name


def test_captions_are_retrieved_where_there_are_no_labels(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, write_captioned(tmp_path, "a", 600, 0), encoder="pixels", captions=True)
    select(catalog, keep=1.0, strategy="random", where="caption like '%red%'", name="red")
    with catalog.writing() as connection:
        connection.execute("update selections set where_sql = null, num_candidates = 600")
    name = validate(catalog, ["red"], seeds=3, epochs=6)
    assert name == "captions-epochs6"
    verdicts = {
        (verdict.comparison.test, verdict.comparison.baseline): verdict
        for verdict in read_verdicts(catalog, name)
    }
    assert len(verdicts) == 8
    for kind in ("image to text @1", "text to image @1"):
        verdict = verdicts[f"held out, {kind}", "full"]
        assert verdict.comparison.baseline_accuracy > 2 * 100 / 16, "well above chance"
        assert verdict.comparison.difference < 0
    assert validate(catalog, ["red"], seeds=3, epochs=6) == name
    with pytest.raises(OptionError, match="--task captions trains none of the models"):
        validate(catalog, ["red"], task="captions", model="mlp")
    other = Catalog(tmp_path / "other")
    embed(other, str(tmp_path / "a.tar"), encoder="pixels")
    select(other, keep=0.5, strategy="random", name="half")
    with pytest.raises(CurateError, match="has no vectors of captions: embed with --captions"):
        validate(other, ["half"], task="captions")


def test_a_network_trains_without_labels_and_is_tested_on_another_task(coloured, tmp_path):
    transfer = write_dark_and_light(tmp_path, "other", 200, 3)
    options = {"task": "self-supervised", "model": "conv:16", "seeds": 2, "epochs": 1}
    with pytest.raises(OptionError, match="give its shards with --transfer"):
        validate(coloured, keep=0.5, **options)
    with coloured.writing() as connection:
        connection.execute("update samples set label = null")
    select(coloured, keep=0.5, strategy="random", name="half")
    name = validate(coloured, ["half"], transfer=transfer, **options)
    assert name == "conv-16-self-supervised-epochs1"
    sql = (
        "select arm, count(*), min(num_samples), min(accuracy) > 0.8 from training_runs group by 1"
    )
    assert sorted(rows(coloured, sql)) == [
        ("full", 2, 300, True),
        ("pruned", 2, 150, True),
        ("random", 2, 150, True),
    ]


def test_weights_are_trained_with_and_compared_with_none(coloured, tmp_path, caplog):
    caplog.set_level("INFO")
    test = write_colours(tmp_path, "test", 120, 2)
    ids = load_sample_ids(coloured).tolist()
    classes = load_classes(coloured)
    add_scoring(coloured, "toy", {key: float(n) for key, n in zip(ids, classes, strict=True)})
    select(coloured, keep=0.5, scoring="toy", balance=0.1, weights=True, name="skewed")
    select(coloured, keep=0.5, strategy="random", name="plain")
    name = validate(coloured, ["skewed", "plain"], test=test, weights=True, **TRAINING)
    runs = rows(
        coloured, "select selection, count(*) from training_runs where arm = 'weighted' group by 1"
    )
    assert runs == [("skewed", 3)]
    compared = rows(coloured, "select selection, baseline from comparisons order by all")
    assert compared == [
        ("plain", "full"),
        ("plain", "random"),
        ("skewed", "full"),
        ("skewed", "random"),
        ("skewed", "unweighted"),
    ]
    (verdict,) = [one for one in read_verdicts(coloured, name) if "weights" in one.text]
    assert verdict.text.startswith("skewed with weights against without: ")
    assert verdict.comparison.difference != 0
    caplog.clear()
    validate(coloured, ["skewed", "plain"], test=test, weights=True, **TRAINING)
    assert "nothing to do" in caplog.text


def test_repeats_are_compared_with_none_at_as_many_steps(coloured, tmp_path, caplog):
    ids = [sample_id for (sample_id,) in rows(coloured, "select sample_id from samples order by 1")]
    add_scoring(coloured, "toy", {sample_id: float(-order) for order, sample_id in enumerate(ids)})
    test = write_colours(tmp_path, "test", 120, 1)
    name = validate(coloured, keep=0.5, scoring="toy", repeats=4, test=test, **TRAINING)
    sql = (
        "select repeats is not null, num_samples, epochs, count(*) from training_runs "
        "join (select selection, repeats from selections) using (selection) "
        "where validation = ? and arm = 'pruned' group by all order by all"
    )
    plain, repeated = rows(coloured, sql, name)
    assert plain[1:] == repeated[1:]  # as many places, and so as many steps
    assert (plain[0], repeated[0]) == (False, True)
    accuracies = "select selection, accuracy from comparisons where baseline = ? order by all"
    ((selection, accuracy),) = rows(coloured, accuracies, "unrepeated")
    assert selection.endswith("-repeats4")
    assert (selection, accuracy) in rows(coloured, accuracies, "full")
    texts = [verdict.text for verdict in read_verdicts(coloured, name)]
    assert any(text.startswith(f"{selection} against the same without repeats") for text in texts)
    # Laws are of samples that come once.
    parameters = {"model": "mlp", "schedule": "epochs", "epochs": None}
    with coloured.reading() as connection:
        runs = connection.execute(read_sql("stages/fit_runs"), parameters).fetchall()
    assert selection not in {run[2] for run in runs}


def test_weights_are_added_to_a_validation_and_need_selections_that_have_them(coloured, tmp_path):
    test = write_colours(tmp_path, "test", 60, 2)
    name = validate(coloured, keep=0.5, test=test, **OPTIONS)
    with pytest.raises(CurateError, match="has no weights; make a selection that has"):
        validate(coloured, test=test, weights=True, **TRAINING)
    assert validate(coloured, keep=0.5, test=test, weights=True, **OPTIONS) == name
    arms_of = rows(
        coloured, "select selection, arm, count(*) from training_runs group by all order by all"
    )
    weighted = "supervised_prototypes-hardest-0.5-weights"
    assert [row for row in arms_of if row[0] == weighted] == [
        (weighted, arm, 3) for arm in ("pruned", "random", "weighted")
    ]
    with pytest.raises(OptionError, match="not for --task coverage"):
        validate(coloured, keep=0.5, task="coverage", weights=True, scoring=OPTIONS["scoring"])


def test_the_rows_of_several_seeds_are_written_one_after_the_other(tmp_path):
    subsets = [np.array([1, 5, 6]), np.array([0, 2, 9])]
    num_rows, checksum = _write_subsets(tmp_path / "arm.npy", iter(subsets), 2)
    assert num_rows == 3
    assert np.load(tmp_path / "arm.npy").tolist() == [[1, 5, 6], [0, 2, 9]]
    assert _write_subsets(tmp_path / "other.npy", iter(subsets[::-1]), 2)[1] != checksum


def test_members_are_found_in_blocks(monkeypatch):
    monkeypatch.setattr(samples, "_BATCH_ROWS", 3)
    ids = np.array([9, 2, 4, 7, 1, 0, 30])
    assert are_members(ids, np.array([1, 4, 9])).tolist() == np.isin(ids, [1, 4, 9]).tolist()
    assert not are_members(ids, np.array([], np.int64)).any()
