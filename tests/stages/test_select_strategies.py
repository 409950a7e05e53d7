"""Strategies within `select`: what they are given, what the options mean for them, what is said."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import load_vectors, members, png, rows, write_shard

from curate.catalog.catalog import Catalog
from curate.distances import l2_normalize
from curate.errors import CurateError, OptionError
from curate.execution.types import Resources
from curate.stages.cluster.stage import cluster
from curate.stages.dedup.stage import dedup
from curate.stages.embed.stage import embed
from curate.stages.score.stage import score
from curate.stages.select import neighbours as neighbours_module
from curate.stages.select.neighbours import find_neighbours
from curate.stages.select.stage import select
from curate.strategies import Quotas, strategies, strategy

CHOOSING = ("coverage", "density", "moderate", "d2", "k_center", "facility_location", "flat")
NUM_SAMPLES = 90


@pytest.fixture(scope="module")
def world_once(tmp_path_factory) -> Path:
    """90 samples in two shards, a third of class 1, six clusters, prototypes; one column."""
    folder = tmp_path_factory.mktemp("world")
    urls = []
    for shard in range(2):
        samples = [
            (
                f"{position:02d}",
                {
                    "png": png(100 * shard + position, (4, 4)),
                    "cls": b"1" if position % 3 == 0 else b"0",
                    "json": b'{"quality": %d}' % position,
                },
            )
            for position in range(45)
        ]
        urls.append(str(write_shard(folder / f"{shard}.tar", samples)))
    catalog = Catalog(folder / "catalog")
    embed(catalog, urls, encoder="pixels", columns="quality")
    cluster(catalog, k=6)
    score(catalog, "ssl_prototypes")
    return catalog.path


@pytest.fixture
def world(world_once, tmp_path) -> Catalog:
    """A copy of the world for each test."""
    shutil.copytree(world_once, tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


@pytest.fixture
def register() -> Iterator[Callable]:
    """Registers strategies for the length of a test."""
    before = dict(strategies)
    yield strategy
    strategies.clear()
    strategies.update(before)


def count_by_label(catalog: Catalog, selection: str) -> dict[str, int]:
    sql = (
        "select label, count(*) from members join samples using (sample_id) "
        "where selection = ? group by 1"
    )
    return dict(rows(catalog, sql, selection))


@pytest.mark.parametrize("name", [*CHOOSING, "design"])
def test_each_strategy_keeps_just_the_fraction_and_the_same_again(world, name):
    options = {"num_neighbours": "5"} if name in ("d2", "facility_location") else None
    selection = select(world, keep=0.4, strategy=name, options=options)
    kept = members(world, selection)
    assert len(kept) == len(set(kept)) == 36
    sql = "select balance, strategy, run_id from selections where selection = ?"
    ((balance, stored, run_id),) = rows(world, sql, selection)
    assert (balance, stored) == (0.0, name)
    assert select(world, keep=0.4, strategy=name, options=options) == selection
    assert rows(world, sql, selection) == [(0.0, name, run_id)]  # there was nothing to do


@pytest.mark.parametrize("name", ["k_center", "coverage", "flat", "d2"])
def test_a_scope_lets_a_strategy_choose_in_each_class_by_itself(world, name):
    select(world, keep=0.5, strategy=name, scope="class", name="scoped")
    assert count_by_label(world, "scoped") == {"0": 30, "1": 15}
    for label, num_members in (("0", 60), ("1", 30)):
        select(world, keep=0.5, strategy=name, where=f"label = '{label}'", name=f"only{label}")
        assert len(members(world, f"only{label}")) == num_members // 2
    together = sorted(members(world, "only0") + members(world, "only1"))
    assert members(world, "scoped") == together


def test_a_selection_within_another_has_no_other_members(world):
    select(world, keep=0.5, strategy="random", name="half")
    select(world, keep=0.5, strategy="k_center", within="half", name="quarter")
    quarter = members(world, "quarter")
    assert len(quarter) == 22
    assert set(quarter) < set(members(world, "half"))


def test_d4_is_dedup_then_clusters_of_the_survivors_then_prototypes(world):
    survivors = dedup(world, keep=0.6, name="survivors")
    cluster(world, k=5, within=survivors, name="again")
    (scoring,) = score(world, "ssl_prototypes", clustering="again", within=survivors)
    by_hand = select(world, keep=0.5, within=survivors, scoring=scoring, balance=0)
    # Under the default name the deduplication is found, and the clustering within it is taken.
    dedup(world, keep=0.6)
    cluster(world, k=5, within="dedup-keep0.6")
    selection = select(world, keep=0.3, strategy="d4", options={"keep_dedup": "0.6"})
    assert selection == "d4-0.3-keep_dedup=0.6"
    assert members(world, selection) == members(world, by_hand)
    assert len(members(world, selection)) == 27
    sql = "select run_id from selections where selection = ?"
    before = rows(world, sql, selection)
    select(world, keep=0.3, strategy="d4", options={"keep_dedup": "0.6"})
    assert rows(world, sql, selection) == before
    cluster(world, k=3, within="dedup-keep0.6")
    select(world, keep=0.3, strategy="d4", options={"keep_dedup": "0.6"})
    assert rows(world, sql, selection) != before


def test_d4_makes_the_sets_that_it_needs(world):
    selection = select(world, keep=0.3, strategy="d4")
    assert len(members(world, selection)) == 27
    assert set(members(world, selection)) < set(members(world, "dedup-keep0.75"))
    assert rows(world, "select count(*) from clusterings") == [(2,)]


def test_a_strategy_of_ones_own_gets_inputs_by_their_names(world, register):
    seen = {}

    @register
    def curious(
        vectors,
        labels,
        clusters,
        distances,
        centroids,
        distance,
        groups,
        scores,
        sample_ids,
        seed,
        num_kept,
        quality,
        power: float = 2.0,
    ):
        seen.update(locals())
        return quality**power

    selection = select(world, keep=0.2, strategy="curious", seed=3, options={"power": "3"})
    assert not seen["vectors"].flags.writeable
    expected = l2_normalize(load_vectors(world).astype("f4"))
    np.testing.assert_allclose(seen["vectors"], expected, atol=1e-6)
    kept = dict(rows(world, "select sample_id, label::int from samples"))
    assert dict(zip(seen["sample_ids"].tolist(), seen["labels"].tolist(), strict=True)) == kept
    differences = seen["vectors"] - seen["centroids"][seen["clusters"]]
    np.testing.assert_allclose((differences**2).sum(axis=1) / 2, seen["distances"], atol=1e-5)
    assert seen["scores"] == pytest.approx(seen["distances"])
    assert (seen["distance"], seen["seed"], seen["num_kept"], seen["power"]) == (
        "cosine",
        3,
        18,
        3.0,
    )
    assert (seen["groups"] == seen["labels"] + 1).all()
    best = rows(world, "select sample_id from sample_columns where quality >= 36")
    assert members(world, selection) == sorted(sample_id for (sample_id,) in best)


def test_a_ranking_by_vectors_has_quotas_and_all_other_options(world, register):
    @register
    def longest(vectors, scores=None):
        assert scores is None
        return np.abs(vectors).max(axis=1)

    select(world, keep=0.3, strategy="longest", balance=1, name="balanced")
    assert count_by_label(world, "balanced") == {"0": 18, "1": 9}
    select(world, keep=0.3, strategy="longest", balance=0, where="label = '1'", name="narrow")
    assert count_by_label(world, "narrow") == {"1": 9}


def test_quotas_of_a_strategy_are_kept_to_the_letter(world, register):
    @register
    def quotas(labels, num_kept):
        return Quotas(np.array([num_kept - 2, 2]), labels, np.zeros(len(labels)))

    select(world, keep=0.2, strategy="quotas", name="two")
    assert count_by_label(world, "two") == {"0": 16, "1": 2}


def test_quotas_that_no_group_can_fill_leave_nothing_behind(world, register):
    @register
    def greedy(labels, num_kept):
        return Quotas(np.array([0, num_kept]), labels, np.zeros(len(labels)))

    with pytest.raises(CurateError, match="'greedy' can fill 30 of 45 samples to keep: lower"):
        select(world, keep=0.5, strategy="greedy", name="none")
    assert rows(world, "select count(*) from selections") == [(0,)]
    assert rows(world, "select count(*) from members") == [(0,)]


def test_samples_without_an_input_come_last(world, register, caplog):
    select(world, keep=0.5, strategy="random", name="half")
    cluster(world, k=3, within="half", name="inner")
    options = {"strategy": "flat", "clustering": "inner", "balance_by": "label"}
    select(world, keep=0.4, **options, name="some")
    assert "45 samples lack what the strategy 'flat' asks for (clusters): they come" in caplog.text
    assert set(members(world, "some")) < set(members(world, "half"))
    select(world, keep=0.6, **options, name="more")
    assert set(members(world, "half")) < set(members(world, "more"))
    assert len(members(world, "more")) == 54


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "k_center", "balance": 0.5}, OptionError, "--balance: 'k_center' makes no"),
        ({"strategy": "flat", "skip_hardest": 0.1}, OptionError, "--skip-hardest: 'flat' makes"),
        ({"strategy": "d2", "unscored": "keep"}, OptionError, "--unscored keep: 'd2' chooses"),
        ({"strategy": "d2", "options": {"k": "3"}}, OptionError, "--option k: no such option; "),
        ({"strategy": "moderate", "options": {"k": "3"}}, OptionError, "'moderate' has none"),
        ({"strategy": "d2", "options": {"gamma": "x"}}, OptionError, "--option gamma=x: could"),
        (
            {"strategy": "d2", "options": {"num_neighbours": "90"}},
            OptionError,
            "num_neighbours=90: there are 90 candidates",
        ),
        (
            {"strategy": "d2", "options": {"num_neighbours": "40"}, "scope": "class"},
            OptionError,
            "num_neighbours=40: there are 30 candidates",
        ),
        ({"strategy": "d4", "keep": 0.8}, OptionError, "--keep 0.8: .* leaves, 0.75: raise"),
        ({"strategy": "d4", "where": "true"}, OptionError, "--where: 'd4' deduplicates the whole"),
        (
            {"strategy": "d4", "options": {"keep_dedup": "1.5"}},
            OptionError,
            "--option keep_dedup=1.5: give a fraction",
        ),
        (
            {"strategy": "coverage", "options": {"beta": "0.9"}},
            CurateError,
            "there are 9 of the 45 samples to keep: lower --option beta, or --keep",
        ),
        ({"strategy": "density", "options": {"temperature": "0"}}, OptionError, "give one above 0"),
        ({"strategy": "density", "options": {"temperature": "nan"}}, OptionError, "above 0"),
        ({"strategy": "density", "unscored": "drop"}, OptionError, "asks for no scores"),
        ({"strategy": "d2", "options": {"gamma": "nan"}}, OptionError, "gamma=nan: give a number"),
        ({"strategy": "d2", "options": {"num_neighbours": "0"}}, OptionError, "from 1 to 1,024"),
        ({"strategy": "design", "options": {"ridge": "-1"}}, OptionError, "ridge=-1: give a"),
        ({"strategy": "flat", "options": {"levels": "0"}}, OptionError, "levels=0: give a number"),
        ({"strategy": "flat", "clustering": "other"}, CurateError, "no clustering called 'other'"),
        ({"strategy": "coverage", "options": {"beta": "1"}}, OptionError, "beta=1: give a"),
        ({"strategy": "d2", "scoring": "el2n"}, CurateError, "curate score"),
        ({"strategy": "flat", "within": "half"}, CurateError, "`curate cluster --within half`"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing_behind(world, options, error, message):
    select(world, keep=0.5, strategy="random", name="half")
    before = rows(world, "select * from named_sets order by all")
    with pytest.raises(error, match=message) as raised:
        select(world, **{"keep": 0.5, **options})
    assert "\n" not in str(raised.value)
    assert rows(world, "select * from named_sets order by all") == before


def test_a_missing_input_names_the_command_that_makes_it(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    samples = [(str(position), {"png": png(position)}) for position in range(6)]
    embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels")
    for name, command in (
        ("flat", "`curate cluster`"),
        ("density", "`curate cluster`"),
        ("coverage", "`curate score"),
    ):
        with pytest.raises(CurateError, match=command):
            select(catalog, keep=0.5, strategy=name)
    assert len(members(catalog, select(catalog, keep=0.5, strategy="k_center"))) == 3


# -- neighbours ------------------------------------------------------------------------------------


def search_neighbours(vectors: np.ndarray, count: int, folder: Path, **options):
    settings = {"distance": "cosine", "seed": 0, "resources": Resources(), **options}
    return find_neighbours(vectors, count, folder=folder, shared_folder=str(folder), **settings)


def slow_neighbours(vectors: np.ndarray, count: int) -> np.ndarray:
    """The sorted distances 1 − x·y of each row to its nearest others."""
    distances = 1 - vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)[:, :count]


def test_neighbours_of_few_rows_are_exact_even_among_copies(tmp_path):
    vectors = l2_normalize(np.random.default_rng(0).standard_normal((60, 5))).astype("f4")
    vectors[40:] = vectors[3]  # more copies than neighbours
    found = search_neighbours(vectors, 7, tmp_path)
    np.testing.assert_allclose(found.distances, slow_neighbours(vectors, 7), atol=1e-6)
    own = np.arange(60)[:, None]
    assert (found.indices != own).all()
    products = np.einsum("nd,nkd->nk", vectors, vectors[found.indices])
    np.testing.assert_allclose(1 - products, found.distances, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neighbours_of_many_rows_are_looked_for_in_clusters_nearby(tmp_path, monkeypatch, distance):
    monkeypatch.setattr(neighbours_module, "EXACT_ROWS", 100)
    monkeypatch.setattr(neighbours_module, "_NEAR_CLUSTERS", 3)
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((12, 16))
    vectors = np.repeat(centers, 40, axis=0) + 0.3 * generator.standard_normal((480, 16))
    vectors = l2_normalize(vectors).astype("f4")
    found = search_neighbours(vectors, 5, tmp_path, distance=distance)
    exact = slow_neighbours(vectors, 5)
    measured = found.distances if distance == "cosine" else found.distances**2 / 2
    assert np.isclose(measured, exact, atol=1e-5).mean() > 0.95
    workers = search_neighbours(vectors, 5, tmp_path, distance=distance, resources=Resources(2))
    assert (workers.indices == found.indices).all()
    assert list(tmp_path.glob("rows-*[!z]")) == []


def test_the_strategies_of_the_page_on_strategies_can_be_used(world, register):
    page = (Path(__file__).resolve().parents[2] / "docs" / "strategies.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    definitions, _, call = code.rpartition("\n\n\n")
    assert call.startswith("curate.select(")
    exec(compile(definitions, "strategies.md", "exec"), {"__name__": "page"})
    typical = select(world, keep=0.3, strategy="typical")
    assert count_by_label(world, typical)["1"] >= 5  # the quota of half of an equal share
    even = select(world, keep=0.3, strategy="even", options={"least": "2"})
    sizes = rows(
        world,
        "select count(*) from members join assignments using (sample_id) where selection = ? "
        "group by cluster_id",
        even,
    )
    assert sum(count for (count,) in sizes) == 27
    assert len(sizes) == 6
