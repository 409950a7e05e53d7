"""The same input, arguments and seed give the same catalog: for any number of workers, any order of shards, in any calls."""

import hashlib

import pytest
from conftest import rows, write_corpus

from curate.catalog import Catalog
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.probe import probe
from curate.stages.score import score
from curate.stages.select import select


def chain(catalog: Catalog, calls: list[list[str]], workers: int) -> dict[str, str]:
    """Hashes of everything that the stages made."""
    for shards in calls:
        embed(catalog, shards, encoder="pixels", workers=workers)
    cluster(catalog, k=4, workers=workers)
    probe(catalog, model=["mlp"], count=2, epochs=2)
    score(catalog, ["ssl_prototypes", "random", "el2n"], workers=workers)
    select(catalog, keep=0.4, name="kept")
    tables = {
        "samples": "select * from samples order by sample_id",
        "assignments": "select * from assignments order by sample_id",
        "scores": "select * from scores order by all",
        "members": "select * from members order by all",
    }
    found = {name: hashlib.sha256(repr(rows(catalog, text)).encode()).hexdigest() for name, text in tables.items()}
    files = sorted((catalog.path / "embeddings").rglob("*.parquet"))
    return found | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> tuple[list[str], dict[str, str]]:
    folder = tmp_path_factory.mktemp("once")
    shards = write_corpus(folder / "corpus", 4, 25)
    return shards, chain(Catalog(folder / "catalog"), [shards], 1)


@pytest.mark.parametrize("how", ["again", "two workers", "three workers", "shards the other way round", "in two calls"])
def test_the_answer_is_the_same(wanted, tmp_path, how):
    shards, hashes = wanted
    calls = {"shards the other way round": [shards[::-1]], "in two calls": [shards[:2], shards]}.get(how, [shards])
    workers = {"two workers": 2, "three workers": 3}.get(how, 1)
    assert chain(Catalog(tmp_path / "catalog"), calls, workers) == hashes
