"""The same input, arguments and seed give the same catalog.

For any number of workers, any order of shards, and any number of calls.
"""

import hashlib

import pytest
from conftest import rows, write_corpus

from curate.catalog.catalog import Catalog
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.probe.stage import probe
from curate.stages.score.stage import score
from curate.stages.select.stage import select


def run_chain(catalog: Catalog, calls: list[list[str]], workers: int) -> dict[str, str]:
    """Checksums of everything that the stages make; `calls` are the shards of each embedding."""
    for shards in calls:
        embed(catalog, shards, encoder="pixels", workers=workers)
    cluster(catalog, k=4, workers=workers)
    probe(catalog, model=["mlp"], count=2, epochs=2)
    score(catalog, ["ssl_prototypes", "random", "el2n"], workers=workers)
    select(catalog, keep=0.4, name="kept")
    tables = {
        table: repr(rows(catalog, f"select * from {table} order by all"))
        for table in ("samples", "assignments", "scores", "members")
    }
    files = sorted((catalog.path / "embeddings").rglob("*.parquet"))
    contents = {name: text.encode() for name, text in tables.items()}
    contents |= {path.name: path.read_bytes() for path in files}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[list[str], dict[str, str]]:
    folder = tmp_path_factory.mktemp("once")
    shards = write_corpus(folder / "corpus", 4, 25)
    return shards, run_chain(Catalog(folder / "catalog"), [shards], workers=1)


@pytest.mark.parametrize(
    ("order", "workers"),
    [("same", 1), ("same", 2), ("same", 3), ("reversed", 1), ("in two calls", 1)],
)
def test_the_answer_is_the_same(expected, tmp_path, order, workers):
    shards, checksums = expected
    calls = {
        "same": [shards],
        "reversed": [shards[::-1]],
        "in two calls": [shards[:2], shards],
    }[order]
    assert run_chain(Catalog(tmp_path / "catalog"), calls, workers) == checksums
