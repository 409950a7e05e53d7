"""Nearest neighbours among the rows of files, compared with all pairs at once."""

from pathlib import Path

import numpy as np
import pytest

from curate.execution.reporting import no_progress
from curate.formats.sample_ids import first_sample_id
from curate.formats.vectors import write_vectors
from curate.training import nearest

NUM_FILES, PER_FILE, DIM = 3, 40, 6


def write_files(folder: Path, vectors: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The rows in three files; returns these and the sample ids."""
    folder.mkdir(exist_ok=True)
    files, ids = [], []
    for shard, rows in enumerate(np.array_split(vectors, NUM_FILES), start=1):
        files.append(str(folder / f"{shard:08d}.parquet"))
        ids.append(first_sample_id(shard) + np.arange(len(rows)))
        write_vectors(files[-1], ids[-1], rows)
    return files, np.concatenate(ids)


def random_vectors(seed: int, num_rows: int = NUM_FILES * PER_FILE) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((num_rows, DIM)).astype(np.float16)


def all_distances(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """1 − x·y for all pairs, in double precision: [t, n]."""
    queries, rows = queries.astype(np.float64), rows.astype(np.float64)
    lengths = np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(rows, axis=1))
    return 1 - queries @ rows.T / lengths


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 16 rows and tiles of 5, so that arms, tiles and batches end at different rows."""
    monkeypatch.setattr(nearest, "_BATCH_ROWS", 16)
    monkeypatch.setattr(nearest, "TILE_BYTES", 4 * 30 * 5)


@pytest.mark.usefixtures("small_tiles")
def test_distances_are_those_of_all_pairs_for_every_arm(tmp_path):
    vectors = random_vectors(0)
    files, ids = write_files(tmp_path, vectors)
    generator = np.random.default_rng(1)
    held_out = np.sort(generator.choice(len(ids), 30, replace=False))
    arms = [np.sort(generator.choice(len(ids), size, replace=False)) for size in (1, 30, 90, 120)]
    distances = nearest.nearest_distances(
        files, ids[held_out], [ids[arm] for arm in arms], no_progress
    )
    assert distances.dtype == np.float32
    pairs = all_distances(vectors[held_out], vectors)
    pairs[np.arange(len(held_out)), held_out] = np.inf  # never itself
    for arm, of_arm in zip(arms, distances, strict=True):
        np.testing.assert_allclose(of_arm, pairs[:, arm].min(axis=1), atol=1e-6)


def test_neighbours_of_a_plane_are_as_drawn(tmp_path):
    degrees = np.array([0, 10, 30, 90, 100, 180])
    vectors = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    files, ids = write_files(tmp_path, vectors)
    arms = [ids[[1, 3]], ids[[5]], ids[:0]]
    distances = nearest.nearest_distances(files, ids[[0, 3]], arms, no_progress)
    angles = np.degrees(np.arccos(1 - distances[:2]))
    np.testing.assert_allclose(angles, [[10, 80], [180, 90]], atol=0.1)
    assert np.isinf(distances[2]).all()


def test_held_out_samples_may_be_of_other_files_with_the_same_ids(tmp_path):
    vectors, test_vectors = random_vectors(0), random_vectors(1)
    files, ids = write_files(tmp_path / "corpus", vectors)
    test_files, test_ids = write_files(tmp_path / "test", test_vectors)
    (distances,) = nearest.nearest_distances(
        files, test_ids, [ids], no_progress, test_files=test_files
    )
    expected = all_distances(test_vectors, vectors).min(axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-6)


def test_progress_counts_the_rows_of_both_passes(tmp_path):
    files, ids = write_files(tmp_path, random_vectors(0))
    reported: list[int] = []
    nearest.nearest_distances(
        files, ids[:3], [ids], lambda work, num_samples: reported.append(num_samples)
    )
    assert sum(reported) == 2 * len(ids)


def test_a_held_out_sample_without_a_vector_is_an_error(tmp_path):
    files, ids = write_files(tmp_path, random_vectors(0))
    with pytest.raises(ValueError, match="1 of the samples are in none of the files"):
        nearest.nearest_distances(files, np.array([ids[0], ids[-1] + 1]), [ids], no_progress)


def test_samples_are_drawn_by_the_seed_alone(tmp_path):
    ids = np.arange(100, dtype=np.int64)
    drawn = nearest.draw_samples(ids, 30, seed=0)
    assert len(set(drawn.tolist())) == 30 and (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, nearest.draw_samples(ids[::-1], 30, seed=0))
    assert not np.array_equal(drawn, nearest.draw_samples(ids, 30, seed=1))
    assert np.array_equal(nearest.draw_samples(ids[::-1], 100, seed=0), ids)


def test_test_samples_with_a_sample_of_the_corpus_above_the_threshold_are_counted(tmp_path):
    corpus, test = random_vectors(0), random_vectors(1)
    corpus_files, _ = write_files(tmp_path / "corpus", corpus)
    test_files, _ = write_files(tmp_path / "test", test)
    count = nearest.count_near_duplicates(corpus_files, test_files, no_progress, threshold=0.8)
    largest = 1 - all_distances(test, corpus).min(axis=1)
    assert 0 < (largest >= 0.8).sum() < len(test)
    assert count == ((largest >= 0.8).sum(), len(test), 0.8)


def spread_out(seed: int, cone: float) -> np.ndarray:
    """Vectors of 64 numbers; `cone` is what they have in common, so that cosines are large."""
    vectors = np.random.default_rng(seed).standard_normal((NUM_FILES * PER_FILE, 64))
    return vectors + cone


@pytest.mark.parametrize("cone", [0, 1, 5], ids=["no cone", "wide cone", "narrow cone"])
@pytest.mark.parametrize("num_leaked", [0, 20, NUM_FILES * PER_FILE])
def test_near_duplicates_are_found_whatever_cosines_are_usual(tmp_path, cone, num_leaked):
    corpus, test = spread_out(0, cone), spread_out(1, cone)
    noise = 0.1 * np.random.default_rng(2).standard_normal(corpus.shape)
    test[:num_leaked] = (corpus + noise)[:num_leaked]
    corpus_files, _ = write_files(tmp_path / "corpus", corpus.astype(np.float16))
    test_files, _ = write_files(tmp_path / "test", test.astype(np.float16))
    count = nearest.count_near_duplicates(corpus_files, test_files, no_progress)
    assert count.num_duplicated == num_leaked


def test_one_test_sample_that_is_a_copy_is_counted(tmp_path):
    vectors = random_vectors(0)
    files, ids = write_files(tmp_path / "corpus", vectors)
    copy, other = str(tmp_path / "copy.parquet"), str(tmp_path / "other.parquet")
    write_vectors(copy, ids[:1], 2 * vectors[7:8])
    write_vectors(other, ids[:1], random_vectors(1, 1))
    counts = [nearest.count_near_duplicates(files, [file], no_progress) for file in (copy, other)]
    assert counts == [(1, 1, nearest.COPY_COSINE), (0, 1, nearest.COPY_COSINE)]


def test_no_more_test_samples_are_examined_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "MAX_EXAMINED", 50)
    files, _ = write_files(tmp_path, random_vectors(0))
    count = nearest.count_near_duplicates(files, files, no_progress)
    assert (count.num_duplicated, count.num_examined) == (50, 50)
