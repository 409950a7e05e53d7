import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_scores, png, rows, write_corpus, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.catalog.records import ProbeRecord
from curate.catalog.samples import load_locations
from curate.errors import CurateError, OptionError
from curate.execution.types import Resources
from curate.formats.probe_outputs import read_outputs, read_test_outputs
from curate.stages.embed.stage import embed
from curate.stages.probe.stage import probe
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.training.image_data import CachedImages, StreamedImages, augment, write_image_cache

COLUMNS = ["probabilities", "correct", "history", "margins", "feature_norms", "was_trained_on"]


def probe_folder(catalog: Catalog, name: str) -> Path:
    return catalog.probe_folder(catalog.require(ProbeRecord, name).folder)


def read_files(catalog: Catalog, name: str) -> dict[str, bytes]:
    """Every file of a probe but the timings, by its path below the probe."""
    folder = probe_folder(catalog, name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def read_part(part: Path) -> dict[str, np.ndarray]:
    """The outputs of a part for every sample, by column."""
    shards = [read_outputs(file, COLUMNS)[1] for file in sorted(part.glob("*.parquet"))]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def test_a_corpus_of_one_sample_is_too_few_to_train_on_and_numpy_has_nothing_to_warn_of(tmp_path):
    samples = [("a", {"png": png(0), "cls": b"a"})]
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels")
    with pytest.raises(CurateError, match="has 1 labelled sample: too few"):  # warnings are errors
        probe(catalog, model="ridge")


def test_equal_images_have_a_component_to_train_on(tmp_path):
    samples = [(str(n), {"png": png(0), "cls": b"ab"[n % 2 : n % 2 + 1]}) for n in range(6)]
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels")
    probe(catalog, model="linear", count=1, epochs=1)
    assert rows(catalog, "select accuracy from probe_models") == [(0.5,)]


def test_test_samples_without_a_class_of_the_corpus_measure_no_influence(tmp_path):
    train = [(str(n), {"png": png(n), "cls": b"a"}) for n in range(6)]
    test = [(str(n), {"png": png(9 + n), "cls": b"b"}) for n in range(3)]
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(write_shard(tmp_path / "a.tar", train))], encoder="pixels")
    shards = [str(write_shard(tmp_path / "b.tar", test))]
    with pytest.raises(CurateError, match="none of the 3 test samples has a label that the corpus"):
        probe(catalog, model="ridge", test=shards)
    own_class = [(str(n), {"png": png(20 + n), "cls": b"a"}) for n in range(3)]
    probe(catalog, model="ridge", test=[str(write_shard(tmp_path / "c.tar", own_class))])
    assert score(catalog, "influence_max") == ["influence_max"]


def test_a_probe_says_something_of_every_sample_by_every_model(catalog):
    name = probe(catalog, count=3, epochs=4)
    (part,) = [path for path in probe_folder(catalog, name).iterdir() if path.is_dir()]
    outputs = read_part(part)
    assert {name: array.shape for name, array in outputs.items()} == {
        "probabilities": (30, 3, 2),
        "correct": (30, 3),
        "history": (30, 3, 4),
        "margins": (30, 3),
        "feature_norms": (30, 3),
    }
    np.testing.assert_allclose(outputs["probabilities"].astype(float).sum(axis=2), 1, atol=2e-3)
    assert rows(catalog, "select num_models, epochs, num_classes, num_samples from probes") == [
        (3, 4, 2, 30)
    ]
    models = rows(catalog, "select accuracy from probe_models order by seed")
    accuracies = [accuracy for (accuracy,) in models]
    np.testing.assert_allclose(accuracies, outputs["correct"].mean(axis=0))


def test_the_same_command_does_nothing_and_the_same_seed_gives_the_same_files(
    catalog, tmp_path, caplog
):
    name = probe(catalog, count=2, epochs=2)
    first = read_files(catalog, name)
    with caplog.at_level("INFO", "curate"):
        probe(catalog, count=2, epochs=2)
    assert f"nothing to do: '{name}' is this probe already (2 models)" in caplog.text
    probe(catalog, count=2, epochs=2, name="again")
    assert read_files(catalog, "again") == first
    probe(catalog, count=2, epochs=2, seed=1, name="other")
    assert read_files(catalog, "other") != first


def test_a_probe_is_replaced_whole(catalog):
    probe(catalog, count=2, epochs=2)
    probe(catalog, count=3, epochs=2)
    assert rows(catalog, "select num_models from probes") == [(3,)]
    assert rows(catalog, "select count(*) from probe_models") == [(3,)]
    assert len(list((catalog.path / "probes" / "mlp-epochs2").iterdir())) == 1


def test_subset_models_know_what_they_were_trained_on(catalog):
    assert probe(catalog, model="ridge", fraction=0.5, count=300) == "ridge-0.5"
    parts = sorted(probe_folder(catalog, "ridge-0.5").iterdir())
    assert [part.name for part in parts] == ["ridge-000000", "ridge-000250"]
    was_trained_on = np.concatenate([read_part(part)["was_trained_on"] for part in parts], axis=1)
    assert was_trained_on.shape == (30, 300)
    assert (was_trained_on.sum(axis=0) == 15).all()  # every subset has exactly its size
    assert len({tuple(subset) for subset in was_trained_on.T}) > 290
    counts = was_trained_on.sum(axis=1)
    assert 100 < counts.min() <= counts.max() < 200  # no sample is favoured


def test_unlabelled_samples_are_judged_but_not_learned(tmp_path):
    samples = []
    for position in range(12):
        label = {"cls": b"%d" % (position % 2)} if position % 3 else {}
        samples.append((f"{position}", {"png": png(position), **label}))
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels")
    probe(catalog, count=2, epochs=2)
    score(catalog, ["el2n", "entropy"])
    nulls = rows(catalog, "select scoring, num_null from scorings order by scoring")
    assert nulls == [("el2n", 4), ("entropy", 0)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": "lineal"}, "no model called 'lineal'"),
        ({"model": ["mlp", "mlp"]}, "name each kind of model once"),
        ({"model": []}, "name each kind of model once"),
        ({"fraction": 0.0}, "--fraction 0: give a number above 0"),
        ({"folds": 1}, "--folds 1: give a whole number from 2"),
        ({"folds": 2, "fraction": 0.5}, "two ways to leave samples out: give one"),
        ({"count": 0}, "--count 0: give a whole number from 1"),
        ({"epochs": 0}, "--epochs 0: give a whole number from 1"),
    ],
)
def test_wrong_options_are_refused_before_any_work(catalog, options, reason):
    with pytest.raises(OptionError, match=reason):
        probe(catalog, **options)
    assert rows(catalog, "select count(*) from runs where stage = 'probe'") == [(0,)]


def test_missing_test_shards_are_an_error_before_any_work(catalog):
    with pytest.raises(CurateError, match=r"no shard at 'nowhere\.tar'"):
        probe(catalog, test="nowhere.tar")
    assert rows(catalog, "select count(*) from runs where stage = 'probe'") == [(0,)]


def test_a_corpus_without_labels_says_so(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    url = write_shard(tmp_path / "a.tar", [("a", {"png": png(1)})])
    embed(catalog, [str(url)], encoder="pixels")
    with pytest.raises(CurateError, match="the corpus has no labels"):
        probe(catalog)


def test_test_shards_are_embedded_by_the_same_encoder_and_are_no_part_of_the_corpus(
    catalog, tmp_path
):
    test = write_corpus(tmp_path / "held-out", num_shards=2, per_shard=6)
    probe(catalog, model="ridge", test=test)
    assert rows(catalog, "select num_samples, num_test from probes") == [(30, 12)]
    assert rows(Catalog(catalog.path / "test"), "select embedding, encoder from embeddings") == [
        ("pixels", "pixels")
    ]
    probe(catalog, model="ridge", test=test[:1], name="fewer")
    assert rows(catalog, "select num_test from probes where probe = 'fewer'") == [(6,)]
    score(catalog, ["influence_max", "influence_sum_abs"], probe="ridge")
    assert rows(catalog, "select count(score) from scores group by scoring") == [(30,), (30,)]


def test_influence_is_of_margins_or_of_the_share_that_is_right_by_the_probe_that_is_named(
    catalog, tmp_path
):
    test = write_corpus(tmp_path / "held-out", num_shards=1, per_shard=7)
    probe(catalog, model="ridge", test=test)
    name = probe(catalog, model="ridge", fraction=0.5, count=40, test=test)
    with pytest.raises(CurateError, match="choose one with --probe: ridge, ridge-0.5"):
        score(catalog, "influence_max")
    assert score(catalog, "influence_max", probe=name) == ["influence_max-ridge-0.5"]
    (part,) = probe_folder(catalog, name).iterdir()
    was_trained_on, correct = read_part(part)["was_trained_on"], read_test_outputs(part)["correct"]
    differences = [
        correct[is_trained].mean(axis=0) - correct[~is_trained].mean(axis=0)
        for is_trained in was_trained_on
    ]
    scores = load_scores(catalog, "influence_max-ridge-0.5")
    np.testing.assert_allclose(scores, np.max(differences, axis=1), atol=1e-6)
    score(catalog, "influence_max", probe="ridge")
    assert load_scores(catalog, "influence_max-ridge") != scores


@pytest.mark.parametrize(
    ("metric", "command"),
    [
        ("el2n", "curate probe`"),
        ("memorization", "curate probe --fraction 0.7`"),
        ("influence_max", "curate probe --model ridge --test SHARDS`"),
        ("ddd", "curate probe --folds 5 --model linear --model"),
    ],
)
def test_a_missing_probe_names_the_command_that_makes_it(catalog, metric, command):
    missing = f"no probe holds what the metric '{metric}' asks for: make one with `{command}"
    with pytest.raises(CurateError, match=missing):
        score(catalog, metric)


def test_each_metric_finds_the_probe_that_has_its_inputs(catalog):
    probe(catalog, count=2, epochs=2, name="mlp")
    probe(catalog, model="ridge", fraction=0.5, count=8)
    probe(catalog, model=["linear", "mlp:8"], epochs=2, name="diverse")
    score(catalog, ["el2n", "memorization", "ddd"])
    sources = rows(catalog, "select scoring, source from scorings order by scoring")
    assert sources == [("ddd", "diverse"), ("el2n", "mlp"), ("memorization", "ridge-0.5")]
    probe(catalog, model="mlp:8", count=2, epochs=2)
    with pytest.raises(
        CurateError, match="several probes would do, choose one with --probe: mlp, mlp-8-epochs2"
    ):
        score(catalog, "forgetting")
    with pytest.raises(
        CurateError, match="the probe 'mlp' does not hold what the metric 'memorization' asks for"
    ):
        score(catalog, "memorization", probe="mlp")


def test_scores_follow_a_new_probe(catalog, caplog):
    probe(catalog, count=2, epochs=2)
    score(catalog, "el2n")
    with caplog.at_level("INFO", "curate"):
        score(catalog, "el2n")
    assert "nothing to do: 'el2n'" in caplog.text
    before = load_scores(catalog, "el2n")
    probe(catalog, count=2, epochs=9, name="mlp-epochs2")
    assert rows(catalog, "select out_of_date from lineage where name = 'el2n'") == [(True,)]
    score(catalog, "el2n")
    assert load_scores(catalog, "el2n") != before


def test_short_and_long_probes_and_their_scorings_stand_side_by_side(catalog):
    names = [probe(catalog, model="mlp:8", count=2, epochs=epochs) for epochs in (1, 8)]
    assert names == ["mlp-8-epochs1", "mlp-8-epochs8"]
    with pytest.raises(CurateError, match="choose one with --probe: mlp-8-epochs1, mlp-8-epochs8"):
        score(catalog, "el2n")
    scorings = [score(catalog, "el2n", probe=name)[0] for name in names]
    assert scorings == ["el2n-mlp-8-epochs1", "el2n-mlp-8-epochs8"]
    assert load_scores(catalog, scorings[0]) != load_scores(catalog, scorings[1])
    sql = "select scoring, source from scorings order by scoring"
    assert rows(catalog, sql) == list(zip(scorings, names, strict=True))


def test_a_stale_scoring_is_made_again_with_the_options_it_was_made_with(catalog, caplog):
    probe(catalog, model="mlp:8", count=2, epochs=1)
    options = {"models": "1"}
    score(catalog, "el2n", probe="mlp-8-epochs1", options=options, name="mine")
    probe(catalog, model="mlp:8", count=3, epochs=1)
    select(catalog, keep=0.5, scoring="mine")
    command = "`curate score el2n --option models=1 --probe mlp-8-epochs1 --name mine`"
    assert f"{command} makes it again" in caplog.text


def test_every_sample_is_left_out_by_one_fold_of_each_model(catalog):
    name = probe(catalog, model=["mlp:8", "ridge"], folds=4, epochs=1)
    assert name == "diverse-folds4-epochs1"
    for part in sorted(probe_folder(catalog, name).iterdir()):
        was_trained_on = read_part(part)["was_trained_on"]
        assert was_trained_on.shape == (30, 4)
        assert (was_trained_on.sum(axis=0) == 22).all()  # 30 less a fold of 8: two overlap
        left_out = (~was_trained_on).sum(axis=1)
        assert (left_out.min(), left_out.max(), left_out.sum()) == (1, 2, 32)
    sql = "select distinct left_out_accuracy is not null from probe_models"
    assert rows(catalog, sql) == [(True,)]
    assert rows(catalog, "select fraction, num_models from probes") == [(0.75, 8)]
    with pytest.raises(CurateError, match="--folds 31: there are 30 labelled samples"):
        probe(catalog, model="ridge", folds=31)


def test_folds_of_several_rounds_differ_and_networks_of_images_have_them_too(catalog):
    name = probe(catalog, model="ridge", folds=3, count=2)
    (part,) = probe_folder(catalog, name).iterdir()
    was_trained_on = read_part(part)["was_trained_on"]
    assert was_trained_on.shape == (30, 6)
    first, second = was_trained_on[:, :3], was_trained_on[:, 3:]
    assert (first.sum(axis=1) == 2).all()
    assert (second.sum(axis=1) == 2).all()
    assert (first != second).any()
    probe(catalog, model=["conv:16", "ridge"], folds=2, epochs=1)
    assert score(catalog, "ddd") == ["ddd"]
    assert {value for (value,) in rows(catalog, "select score from scores")} <= {0, 1, 2}


def test_ddd_counts_the_models_that_did_not_see_the_sample(catalog):
    """A head that has memorized noise is right on what it saw, and guesses what it did not."""
    models = ["mlp:64", "mlp:32", "linear"]
    probe(catalog, model=models, epochs=60)
    score(catalog, "ddd")
    assert set(load_scores(catalog, "ddd")) == {0}
    probe(catalog, model=models, epochs=60, folds=5)
    score(catalog, "ddd")  # by the folds, where there are both
    assert rows(catalog, "select source from scorings") == [("diverse-folds5-epochs60",)]
    name = "diverse-folds5-epochs60"
    wrong = [
        (~outputs["correct"] & ~outputs["was_trained_on"]).any(axis=1)
        for outputs in map(read_part, sorted(probe_folder(catalog, name).iterdir()))
    ]
    assert load_scores(catalog, "ddd") == np.sum(wrong, axis=0).tolist()
    assert max(load_scores(catalog, "ddd")) == 3
    with pytest.raises(CurateError, match="does not hold what the metric 'memorization' asks for"):
        score(catalog, "memorization", probe=name)


def test_reliability_is_stored_and_a_low_one_is_a_warning(catalog, caplog):
    probe(catalog, model="ridge", fraction=0.5, count=6)
    with caplog.at_level("WARNING", "curate"):
        score(catalog, "memorization")
    ((reliability,),) = rows(catalog, "select reliability from scorings")
    assert reliability < 0.7
    assert "two halves of the probe rank by 'memorization' alike only to" in caplog.text
    assert rows(catalog, "select count(standard_error) from scores") == [(30,)]


def test_options_of_a_metric_have_types_and_names(catalog):
    probe(catalog, count=2, epochs=2)
    score(catalog, "el2n", options={"models": "1"}, name="el2n_of_one")
    score(catalog, "el2n")
    assert len(rows(catalog, "select distinct score from scores")) > 30
    sql = "select arguments from scorings where scoring = 'el2n_of_one'"
    ((arguments,),) = rows(catalog, sql)
    assert json.loads(arguments)["models"] == 1
    with pytest.raises(OptionError, match="--option models=one: invalid literal"):
        score(catalog, "el2n", options={"models": "one"})
    with pytest.raises(OptionError, match="--option luck: no such option; there are: models"):
        score(catalog, "el2n", options={"luck": "1"})


def test_a_metric_of_ones_own_lives_in_any_file(catalog, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n\ndef unsure(probabilities, power=1.0):\n"
        "    return (1 - probabilities.max(axis=2).mean(axis=1)) ** power\n"
    )
    probe(catalog, count=2, epochs=2)
    assert score(catalog, [f"{file}:unsure", "confidence"]) == ["unsure", "confidence"]
    assert score(catalog, f"{file}:unsure", options={"power": "2"}, name="squared") == ["squared"]
    unsure, confidence, squared = (
        np.array(load_scores(catalog, name)) for name in ("unsure", "confidence", "squared")
    )
    np.testing.assert_allclose(unsure, confidence)
    np.testing.assert_allclose(unsure**2, squared, atol=1e-6)
    (tmp_path / "broken.py").write_text("def x(:\n")
    for spec, reason in (
        (f"{tmp_path}/none.py:x", "cannot read .*none.py"),
        (f"{file}:sure", "has no function 'sure'"),
        (f"{tmp_path}/broken.py:x", "cannot be imported: SyntaxError"),
    ):
        with pytest.raises(CurateError, match=reason):
            score(catalog, spec)


def test_a_network_of_images_reads_them_from_the_shards(catalog, tmp_path):
    test = write_corpus(tmp_path / "test", 1, size=(14, 10))
    name = probe(catalog, model="conv:16", count=2, epochs=1, test=test)
    parts = sorted(path.name for path in probe_folder(catalog, name).iterdir())
    assert parts == ["conv-16-000000", "conv-16-000001"]
    score(catalog, ["el2n", "grand"])
    assert rows(catalog, "select num_null from scorings") == [(0,), (0,)]
    assert not list(catalog.path.rglob("*.npy")), "the cache of pixels is gone"


def test_images_are_the_same_from_the_cache_and_from_the_shards(catalog, tmp_path):
    samples = rows(catalog, "select sample_id from samples order by 1")
    locations = load_locations(catalog, np.array([sample_id for (sample_id,) in samples]))
    cache = tmp_path / "cache.npy"
    write_image_cache(locations, 16, cache, Resources(), lambda amount, samples: None)
    orders = [torch.tensor([[29, 3, 11]]), torch.tensor([[0]]), torch.tensor([[7, 7]])] * 3
    cached = list(CachedImages(cache).batches(orders, False, torch.device("cpu")))
    streamed = list(StreamedImages(locations, 16).batches(orders, False, torch.device("cpu")))
    assert all(torch.equal(*batches) for batches in zip(cached, streamed, strict=True))
    assert cached[0].shape == (1, 3, 3, 16, 16)
    assert not torch.equal(cached[0][0, 0], cached[0][0, 1])


def test_augmentation_flips_and_shifts_but_makes_no_new_pixels():
    torch.manual_seed(0)
    image = torch.arange(32 * 32, dtype=torch.int32).reshape(1, 32, 32, 1)
    images = image.expand(8, 32, 32, 3)
    for _ in range(5):
        augmented = augment(images)
        assert augmented.shape == images.shape
        assert 0 <= int(augmented.min()) <= int(augmented.max()) < 32 * 32
        steps = augmented[:, 16, 16, 0] - augmented[:, 16, 15, 0]
        assert set(steps.tolist()) <= {-1, 1}
        assert ((augmented[:, 16, 16, 0] // 32 - 16).abs() <= 2).all()


def test_a_vanished_shard_ends_a_probe_of_images_in_one_line(catalog, tmp_path):
    os.rename(tmp_path / "corpus" / "001.tar", tmp_path / "elsewhere.tar")
    with pytest.raises(CurateError, match=r"001\.tar"):
        probe(catalog, model="conv:16", count=1, epochs=1)
    assert rows(catalog, "select status from runs where stage = 'probe'") == [("failed",)]


def test_a_killed_probe_continues_with_the_parts_that_are_missing(catalog):
    options = {"model": ["linear", "mlp:8", "mlp:16"], "epochs": 3}
    probe(catalog, **options, name="undisturbed")
    program = f"import curate; curate.probe({str(catalog.path)!r}, **{options!r}, name='killed')"
    process = subprocess.Popen([sys.executable, "-c", program])
    folder = catalog.path / "probes" / "killed"
    deadline = time.monotonic() + 60
    while not list(folder.glob("*/linear-000000")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list(folder.glob("*/linear-000000/*.parquet"))
    assert finished
    times = [file.stat().st_mtime_ns for file in finished]
    probe(catalog, **options, name="killed")
    assert [file.stat().st_mtime_ns for file in finished] == times, "what was finished is kept"
    assert read_files(catalog, "killed") == read_files(catalog, "undisturbed")
    assert not [path for path in catalog.path.rglob(".tmp-*") if path.is_dir()]


def test_metrics_that_rank_alike_are_neighbours(catalog):
    probe(catalog, count=4, epochs=3)
    score(catalog, ["random", "margin", "entropy", "el2n"])
    names, matrix = curate.correlations(catalog)
    assert sorted(names) == ["el2n", "entropy", "margin", "random"]
    np.testing.assert_allclose(np.diag(matrix), 1)
    np.testing.assert_allclose(matrix, matrix.T)
    assert abs(names.index("el2n") - names.index("margin")) == 1
    ranks = [np.argsort(load_scores(catalog, name)).argsort() for name in ("el2n", "margin")]
    correlation = np.corrcoef(*ranks)[0, 1]
    assert matrix[names.index("el2n"), names.index("margin")] == pytest.approx(
        correlation, abs=1e-3
    )


def test_imbalance_is_amplified_by_a_metric_that_has_a_favourite(catalog):
    with catalog.writing() as connection:
        connection.execute("update samples set label = (sample_id % 2)::text")
    score(catalog, "random")
    with catalog.writing() as connection:
        connection.execute("update scores set score = sample_id % 2 + score / 10")
    (row,) = curate.query(catalog, "imbalance").to_pylist()
    assert row["corpus"] == 1
    assert row["hardest"] == 0
    assert row["hardest_amplifies"]
    favourite, other = curate.query(catalog, "class_shares").to_pylist()
    assert (favourite["label"], favourite["growth"], other["growth"]) == ("1", 2, 0)


def test_a_file_of_a_probe_that_is_gone_is_an_error_and_no_null(catalog):
    probe(catalog, count=2, epochs=2)
    part = probe_folder(catalog, "mlp-epochs2") / "mlp-000000"
    (part / "00000001.parquet").unlink()
    with pytest.raises(CurateError, match=r"00000001\.parquet' is gone: remove its folder"):
        score(catalog, "el2n")
    assert rows(catalog, "select count(*) from scorings") == [(0,)]
    shutil.rmtree(part)
    probe(catalog, count=2, epochs=2)
    score(catalog, "el2n")
    assert rows(catalog, "select num_null from scorings") == [(0,)]
