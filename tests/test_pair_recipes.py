"""The recipes for pictures with captions, on the stand-in corpus of benchmarks/pairs.py.

Its CLIP is not trained here: what is tested is that the steps fit together, not what they keep.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import members, rows

import curate
from curate.catalog.catalog import Catalog

PAIRS = Path(__file__).resolve().parents[1] / "benchmarks" / "pairs.py"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Path:
    """100 pairs, a target set, and a CLIP with random weights."""
    spec = importlib.util.spec_from_file_location("pairs", PAIRS)
    pairs = importlib.util.module_from_spec(spec)
    sys.modules["pairs"] = pairs
    spec.loader.exec_module(pairs)
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("pairs", "target"):
        (folder / name).mkdir()
    pairs.write_pairs(folder / "pairs", 100, 2, seed=0)
    pairs.write_targets(folder / "target" / "target.tar", seed=1)
    pairs.train_clip(folder / "clip", 0, seed=2)
    return folder


def run_recipe(name: str, stand_in: Path, folder: Path) -> Catalog:
    encoder = f"embed.encoder=open_clip:local-dir:{stand_in / 'clip'}"
    curate.run(name, folder, set=[encoder, "embed.workers=1"])
    return Catalog(folder)


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_for_datacomp_writes_the_uids_of_what_it_keeps(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CURATE_DATA", str(stand_in))
    catalog = run_recipe("datacomp", stand_in, tmp_path / "catalog")
    assert len(members(catalog, "datacomp")) == 30
    assert set(members(catalog, "datacomp")) < set(members(catalog, "image-based"))
    unscored = rows(
        catalog,
        "select count(*) from members join samples using (sample_id) "
        "where selection = 'datacomp' and caption is null",
    )
    assert unscored == [(0,)]
    uids = rows(
        catalog,
        "select uid from members join sample_scores using (sample_id) "
        "where selection = 'datacomp' order by uid",
    )
    stored = np.load(tmp_path / "catalog" / "datacomp.npy")
    assert [f"{high:016x}{low:016x}" for high, low in stored] == [uid for (uid,) in uids]


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_for_laion_thins_out_step_by_step(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CURATE_DATA", str(stand_in))
    catalog = run_recipe("laion", stand_in, tmp_path / "catalog")
    unique, fitting, kept = (set(members(catalog, n)) for n in ("unique", "fitting", "laion"))
    assert kept < fitting < unique
    assert len(unique) < 100
    assert len(fitting) == round(0.7 * len(unique))
    assert len(kept) == round(0.8 * len(fitting))
    shards = sorted((tmp_path / "catalog" / "pruned").glob("*.tar"))
    assert [shard.name for shard in shards] == ["00000.tar", "00001.tar"]
