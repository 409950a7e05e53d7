"""Duplicates: exact by bytes and pixels, near by vectors; every pair, in whatever clusters."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import add_scoring, make_catalog, members, png, rows, write_shard
from PIL import Image

import curate
from curate.catalog.catalog import Catalog
from curate.catalog.records import DeduplicationRecord
from curate.distances import l2_normalize
from curate.errors import CurateError, OptionError
from curate.execution.types import Resources
from curate.formats.images import Preprocessing, decode_image, pixels_checksum
from curate.formats.vectors import write_vectors
from curate.stages.dedup import neighbours, worker
from curate.stages.dedup.calibration import Calibration
from curate.stages.dedup.copies import DISTORTIONS
from curate.stages.dedup.cosines import exact_cosines, near_pairs, sketch_rows, unit_rows
from curate.stages.dedup.methods import METHODS, count_split_chains, find_survivors, reduce_pairs
from curate.stages.dedup.neighbours import SortedSamples, VectorFiles, VectorSets


def recompress(data: bytes, format: str, **options) -> bytes:
    """The same picture in another file."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, format=format, **options)
    return file.getvalue()


def smooth_png(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """A picture that keeps its look when it is made smaller: four corners, and what is between."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Ten pictures: 0 to 5 are of their own; 6 has the bytes of 1, 7 the pixels of 2 in another
    file, 8 is 3 made smaller, 9 has the bytes of 1 and another label."""
    folder = tmp_path_factory.mktemp("world")
    images = [smooth_png(seed) for seed in range(6)]
    images += [images[1], recompress(images[2], "BMP"), smooth_png(3, (12, 10)), images[1]]
    samples = [
        (f"{number:02d}", {"bmp" if number == 7 else "png": data, "cls": b"cat"})
        for number, data in enumerate(images)
    ]
    samples[9][1]["cls"] = b"dog"
    urls = [
        str(write_shard(folder / "corpus" / "0.tar", samples[:5])),
        str(write_shard(folder / "corpus" / "1.tar", samples[5:])),
    ]
    curate.embed(folder / "catalog", urls, encoder="pixels", workers=1)
    return folder


@pytest.fixture
def corpus(world, tmp_path) -> Catalog:
    shutil.copytree(world / "catalog", tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


@pytest.fixture(autouse=True)
def messages(caplog) -> None:
    caplog.set_level("INFO", logger="curate")


def groups(catalog: Catalog, name: str) -> list[tuple]:
    """(group, key, why it goes or None) in the order of the keys in each group."""
    return rows(
        catalog,
        "select group_id, key, kind from duplicates join samples using (sample_id) "
        "where deduplication = ? order by group_id, key",
        name,
    )


def keys(catalog: Catalog, selection: str) -> list[str]:
    return [
        key
        for (key,) in rows(
            catalog,
            "select key from members join samples using (sample_id) where selection = ? "
            "order by key",
            selection,
        )
    ]


def test_bytes_pixels_and_vectors_make_groups_of_which_the_largest_picture_stays(corpus, caplog):
    name = curate.dedup(corpus, eps=0.01)
    assert groups(corpus, name) == [
        (1, "01", None),
        (1, "06", "bytes"),
        (1, "09", "bytes"),
        (2, "02", None),
        (2, "07", "pixels"),
        (3, "03", None),
        (3, "08", "near"),
    ]
    assert keys(corpus, name) == ["00", "01", "02", "03", "04", "05"]
    record = corpus.require(DeduplicationRecord, name)
    assert (record.num_exact, record.num_near, record.num_contradicting) == (3, 1, 1)
    assert "1 groups of duplicates have several labels" in caplog.text
    contradicting = curate.query(corpus, "contradicting_labels").to_pylist()
    assert {row["label"] for row in contradicting} == {"cat", "dog"}
    assert curate.verify(corpus) == []
    with Image.open(corpus.path / "figures" / f"duplicates-{name}.png") as picture:
        assert picture.format == "PNG"


def test_the_same_call_again_does_nothing_and_other_options_have_another_name(corpus, caplog):
    name = curate.dedup(corpus, eps=0.01)
    run_ids = rows(corpus, "select max(run_id) from runs")
    assert curate.dedup(corpus, eps=0.01) == name
    assert rows(corpus, "select max(run_id) from runs") == run_ids
    assert "nothing to do" in caplog.text
    assert curate.dedup(corpus, exact=True) == "dedup-exact"
    assert rows(
        corpus,
        "select distinct kind from duplicates where deduplication = 'dedup-exact' "
        "and not stays order by 1",
    ) == [("bytes",), ("pixels",)]


def test_duplicates_are_a_column_to_select_by_and_survivors_a_corpus_to_work_within(corpus):
    name = curate.dedup(corpus, eps=0.01, name="twins")
    by_column = curate.select(corpus, keep=1.0, strategy="random", where="not twins", name="all")
    assert members(corpus, by_column) == members(corpus, name)
    half = curate.select(corpus, keep=0.5, strategy="random", within=name, name="half")
    assert set(members(corpus, half)) < set(members(corpus, name))
    assert curate.cluster(corpus, k=2, within=name) == "kmeans-in-twins"


def test_a_scoring_says_who_stays(corpus):
    ids = [sample_id for (sample_id,) in rows(corpus, "select sample_id from samples order by 1")]
    add_scoring(corpus, "beauty", {sample_id: float(n) for n, sample_id in enumerate(ids)})
    name = curate.dedup(corpus, eps=0.01, keep_best="beauty")
    assert keys(corpus, name) == ["00", "04", "05", "07", "08", "09"]
    with pytest.raises(OptionError, match=r"--keep-best label: no column of numbers .* pixels, b"):
        curate.dedup(corpus, keep_best="label")


def test_keep_chooses_the_threshold(corpus):
    name = curate.dedup(corpus, keep=0.4)
    assert len(members(corpus, name)) == 4


def test_mistakes_are_named(corpus):
    for eps in (0, 2, -1, float("nan")):
        with pytest.raises(OptionError, match="--eps .*: give a number above 0 and below 2"):
            curate.dedup(corpus, eps=eps)
    with pytest.raises(OptionError, match="give one of them"):
        curate.dedup(corpus, eps=0.1, keep=0.5)
    with pytest.raises(OptionError, match="compares no vectors: leave out --eps"):
        curate.dedup(corpus, eps=0.1, exact=True)
    curate.select(corpus, keep=0.5, strategy="random", name="mine")
    with pytest.raises(CurateError, match="'mine' is the name of another selection"):
        curate.dedup(corpus, exact=True, name="mine")


def test_an_old_catalog_without_checksums_says_how_to_add_them(corpus, caplog):
    before = rows(corpus, "select * from samples order by sample_id")
    with corpus.writing() as connection:
        connection.execute(
            "update samples set image_bytes = null, image_checksum = null, pixels_checksum = null"
        )
    with pytest.raises(CurateError, match=r"10 samples .* `curate dedup -c .* --add-checksums`"):
        curate.dedup(corpus, exact=True)
    curate.dedup(corpus, eps=0.01)
    assert "--add-checksums` reads their shards once; without, only near" in caplog.text
    curate.dedup(corpus, exact=True, add_checksums=True)
    assert rows(corpus, "select * from samples order by sample_id") == before
    assert len(members(corpus, "dedup-exact")) == 7


def test_against_a_test_set_the_samples_that_leak_are_left_out(world, corpus, tmp_path, caplog):
    test = write_shard(
        tmp_path / "test" / "t.tar",
        [
            ("copy", {"png": smooth_png(4), "cls": b"cat"}),
            ("near", {"png": smooth_png(5, (12, 10)), "cls": b"cat"}),
            ("other", {"png": smooth_png(99), "cls": b"cat"}),
        ],
    )
    name = curate.dedup(corpus, eps=0.01, against=str(test))
    found = rows(corpus, "select group_id, sample_id & 255, stays, kind, other_key from duplicates")
    assert found == [(1, 4, False, "bytes", "copy"), (2, 0, False, "near", "near")]
    assert "exact: 1 of 3 samples" in caplog.text
    assert "eps 0.01: 2 of 3 samples" in caplog.text
    counts = curate.query(corpus, "duplicates_by_eps").to_pylist()
    assert [(row["eps"], row["num_groups"]) for row in counts][-1] == (0.01, 2)
    assert len(members(corpus, name)) == 8
    assert curate.verify(corpus) == []
    other = curate.dedup(corpus, eps=0.01, against=str(corpus.path / "test"), name="catalog")
    assert members(corpus, other) == members(corpus, name)


def test_a_copy_of_a_shard_is_said_and_can_be_left_out(tmp_path, caplog):
    catalog = make_catalog(tmp_path)
    copy = tmp_path / "corpus" / "000 (1).tar"
    shutil.copy(tmp_path / "corpus" / "000.tar", copy)
    curate.embed(catalog, str(tmp_path / "corpus"), encoder="pixels", skip_duplicates=True)
    assert rows(catalog, "select count(*) from shards") == [(3,)]
    assert f"left out {copy}: a copy of" in caplog.text
    curate.embed(catalog, str(tmp_path / "corpus"), encoder="pixels")
    assert "1 shard with the bytes of another, such as" in caplog.text
    assert "--skip-duplicates leaves out new ones" in caplog.text
    assert len(members(catalog, curate.dedup(catalog, exact=True))) == 30


# -- thresholds with a known error -----------------------------------------------------------------


def test_the_threshold_is_the_largest_at_which_no_more_images_have_another_one_as_near():
    distances = np.array([0.1, 0.2, 0.3, 0.4])
    calibration = Calibration({"grey": distances, "crop": 2 * distances}, distances, np.arange(4))
    assert calibration.choose_eps(0.25) == pytest.approx(0.2, abs=2e-6)
    assert calibration.false_rate(0.2) == 0.25
    assert calibration.choose_eps(0.49) == pytest.approx(0.2, abs=2e-6)
    assert calibration.choose_eps(0.5) == pytest.approx(0.3, abs=2e-6)
    assert calibration.choose_eps(1e-9) == pytest.approx(0.1, abs=2e-6)
    assert calibration.found_shares(0.3) == {"grey": 0.5, "crop": 0.25}
    assert calibration.found_share(0.3) == 0.375


def test_copies_of_the_corpus_and_different_images_give_a_threshold_with_its_error(corpus, caplog):
    name = curate.dedup(corpus, calibrate=True, false_matches=0.3)
    assert name == "dedup-calibrated-0.3"
    assert "calibration: 70 copies of 7 images, and the nearest other of 7 images" in caplog.text
    with open(corpus.path / "figures" / f"calibration-{name}.csv") as file:
        names, *lines = csv.reader(file)
    assert names == ["eps", "false_matches", *DISTORTIONS]
    table = np.array(lines, np.float64)
    assert (np.diff(table, axis=0) >= 0).all()
    assert (table[-1, 1:] == 1).all()
    # 3 and 8 are one picture in two sizes; the next image has another one just at the threshold.
    eps = corpus.require(DeduplicationRecord, name).eps
    assert [key for _, key, kind in groups(corpus, name) if kind == "near"] == ["08"]
    assert table[table[:, 0] < eps, 1].max() <= 0.3
    for picture in (f"calibration-{name}.png", f"calibration-pairs-{name}.png"):
        with Image.open(corpus.path / "figures" / picture) as image:
            assert image.format == "PNG"
    # Another picture is near 3 at so large a threshold, not near 8: 3 goes for it, and 8 stays.
    curate.dedup(corpus, calibrate=True, eps=0.33526, name="given")
    assert "eps 0.3353: " in caplog.text
    assert corpus.require(DeduplicationRecord, "given").eps == 0.33526
    assert [key for _, key, kind in groups(corpus, "given") if kind == "near"] == ["03"]
    assert "split 1 chain of near pairs whose ends are not near: of these 2 samples" in caplog.text


def test_a_calibration_needs_the_encoder_of_the_vectors(corpus):
    with corpus.writing() as connection:
        connection.execute("update embeddings set weights_sha256 = 'other'")
    with pytest.raises(CurateError, match="--calibrate: the encoder pixels has other weights"):
        curate.dedup(corpus, calibrate=True)
    with pytest.raises(OptionError, match="--false-matches is measured by --calibrate: give both"):
        curate.dedup(corpus, false_matches=0.1)
    for options in ({"exact": True}, {"keep": 0.5}, {"against": "x"}):
        with pytest.raises(OptionError, match="--calibrate"):
            curate.dedup(corpus, calibrate=True, **options)


def test_what_hangs_together_by_a_chain_only_is_split_or_said():
    chain = np.array([[0, 1], [1, 2], [4, 5]], np.uint32)
    assert count_split_chains(chain, find_survivors(6, chain, "greedy")) == (1, 2)
    assert count_split_chains(chain, find_survivors(6, chain, "components")) == (0, 0)


# -- pairs -----------------------------------------------------------------------------------------


def draw_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    """Vectors in eight heaps of different sizes, a fifth of them close to another one: float16."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((8, dim))
    rows = centers[generator.integers(0, 8, count) ** 2 // 8] + generator.standard_normal(
        (count, dim)
    )
    copied = count // 5
    noise = generator.uniform(0, 0.4, (copied, 1)) * generator.standard_normal((copied, dim))
    rows[:copied] = rows[copied : 2 * copied] + noise
    rows[copied * 2] = 0  # no direction, so near nothing
    return rows.astype(np.float16)


def sort_vectors(vectors: np.ndarray, k: int, ranks: np.ndarray, folder: Path) -> SortedSamples:
    """The vectors in three files, sorted by k centroids."""
    files = {}
    for shard, ids in enumerate(np.array_split(np.arange(len(vectors)), 3)):
        file = str(folder / f"{shard:08d}.parquet")
        write_vectors(file, ids, vectors[ids])
        files[file] = len(ids)
    chosen = np.random.default_rng(k).choice(len(vectors), k, replace=False)
    centroids = l2_normalize(vectors[chosen].astype(np.float32)).astype(np.float16)
    sets = VectorSets(
        (VectorFiles(files, None),), vectors.shape[1], centroids, str(folder), folder, Resources()
    )
    located = sets.locate()
    return sets.sort(located, np.argsort(np.argsort(ranks[located.sample_ids])))


def brute_force(vectors: np.ndarray, ranks: np.ndarray, eps: float) -> np.ndarray:
    """All pairs, by the rule alone: ranks [p, 2], sorted."""
    i, j = np.triu_indices(len(vectors), 1)
    is_near = exact_cosines(vectors[i], vectors[j]) > 1 - eps
    pairs = np.sort(np.stack([ranks[i[is_near]], ranks[j[is_near]]], axis=1), axis=1)
    return pairs[np.lexsort(pairs.T)]


@pytest.mark.parametrize("k", [1, 4, 30])
@pytest.mark.parametrize("tile_rows", [64, 1024])
def test_the_pairs_are_those_of_brute_force_for_any_clusters_and_tiles(
    tmp_path, monkeypatch, k, tile_rows
):
    monkeypatch.setattr(neighbours, "_TILE_ROWS", tile_rows)
    monkeypatch.setattr(neighbours, "_TASK_ROWS", 3 * tile_rows)
    vectors = draw_vectors(400, 40, seed=k)
    nonzero = np.flatnonzero(vectors.any(axis=1))
    ranks = np.zeros(len(vectors), np.int64)
    ranks[nonzero] = np.random.default_rng(0).permutation(len(nonzero))
    located = sort_vectors(vectors, k, ranks, tmp_path)
    for eps in (0.01, 0.03, 0.1, 0.7, 1.9):
        expected = brute_force(vectors[nonzero], ranks[nonzero], eps)
        pairs = located.find_pairs(eps, "greedy", Resources())
        assert np.array_equal(pairs[np.lexsort(pairs.T)], expected)
        for method in METHODS:
            fewer = located.find_pairs(eps, method, Resources())
            assert np.array_equal(
                find_survivors(len(nonzero), fewer, method),
                find_survivors(len(nonzero), expected.astype(np.uint32), method),
            )


def test_at_the_threshold_itself_tiles_and_brute_force_agree_to_the_bit(tmp_path):
    vectors = draw_vectors(300, 40, seed=5)
    vectors = vectors[vectors.any(axis=1)]
    ranks = np.arange(len(vectors))
    located = sort_vectors(vectors, 6, ranks, tmp_path)
    i, j = np.triu_indices(len(vectors), 1)
    cosines = np.sort(exact_cosines(vectors[i], vectors[j]))
    for cosine in cosines[-200:-1:20]:  # a threshold that is the cosine of a pair, which is strict
        pairs = located.find_pairs(1 - cosine, "greedy", Resources())
        assert len(pairs) == len(brute_force(vectors, ranks, 1 - cosine))


def test_a_sketch_bounds_the_cosine_from_above():
    generator = np.random.default_rng(0)
    units = unit_rows(draw_vectors(200, 60, seed=1))
    basis, _ = np.linalg.qr(generator.standard_normal((60, 7)))
    sketches = sketch_rows(units, basis)
    assert (sketches @ sketches.T >= units @ units.T - 1e-6).all()
    assert near_pairs(
        np.eye(3, dtype=np.float16),
        np.eye(3, dtype=np.float16),
        np.array([[0, 1, 2], [0, 1, 0]]),
        0.5,
    ).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("method", "expected"),
    [("upper", [0, 0, 0]), ("greedy", [0, 0, 2]), ("components", [0, 0, 0])],
)
def test_a_chain_shows_how_the_methods_differ(method, expected):
    # cos(a, b) = cos(b, c) = .95, cos(a, c) = .80, eps .1
    chain = np.array([[0, 1], [1, 2]], np.uint32)
    assert find_survivors(3, chain, method).tolist() == expected
    assert find_survivors(3, reduce_pairs(chain, method), method).tolist() == expected


def test_the_published_scores_of_a_small_example():
    numbers = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [1, 2, 3], [1, 2, 3]])
    vectors = numbers.astype(np.float16)
    i, j = np.triu_indices(6, 1)
    largest = np.zeros(6)
    np.maximum.at(largest, j, exact_cosines(vectors[i], vectors[j]))
    assert largest == pytest.approx([0, 0.974631, 0.998190, 0.999618, 1, 1], abs=1e-6)


def test_greedy_stays_bounded_and_says_so(tmp_path, monkeypatch):
    vectors = draw_vectors(300, 40, seed=2)
    vectors = vectors[vectors.any(axis=1)]
    located = sort_vectors(vectors, 2, np.arange(len(vectors)), tmp_path)
    monkeypatch.setattr(worker, "_BUFFERED_PAIRS", 100)
    monkeypatch.setattr(neighbours, "_BUFFERED_PAIRS", 100)
    everyone = find_survivors(
        len(vectors), located.find_pairs(1.9, "components", Resources()), "components"
    )
    assert (everyone == 0).all()
    monkeypatch.setattr(neighbours.check_num_pairs, "__defaults__", (1000,))
    with pytest.raises(CurateError, match="--eps 1.9 makes more than 1,000 near pairs"):
        located.find_pairs(1.9, "greedy", Resources())


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_the_checksum_of_pixels_is_that_of_the_rgb_picture_in_any_file(mode):
    image = Image.open(io.BytesIO(png(1))).convert(mode)
    checksums = set()
    for kind in ("PNG", "BMP", "TIFF", "WEBP"):
        file = io.BytesIO()
        try:
            image.save(file, format=kind, lossless=True)
        except (OSError, ValueError):  # the format does not have this mode
            continue
        if kind == "WEBP" and mode not in ("RGB", "L"):
            continue
        decoded = decode_image(file.getvalue(), Preprocessing(8, 8), with_checksum=True)
        assert decoded.checksum == pixels_checksum(file.getvalue())
        checksums.add(decoded.checksum)
    assert len(checksums) == 1


def test_a_large_picture_has_the_checksum_of_its_pixels_too(monkeypatch):
    import pyarrow

    data = png(1, (64, 50))
    whole = pixels_checksum(data)

    def refuse(image):
        raise ValueError

    monkeypatch.setattr(pyarrow, "array", refuse)
    monkeypatch.setattr("curate.formats.images._STRIP_PIXELS", 500)
    assert pixels_checksum(data) == whole
