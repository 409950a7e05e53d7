"""An exported encoder is kept, and used again only where nothing of it has changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rows, write_corpus

from curate.catalog.catalog import Catalog
from curate.encoders import Encoder, _weights_files, encoders
from curate.encoders.weights import hash_weights
from curate.formats.images import Preprocessing
from curate.formats.vectors import read_vectors
from curate.stages.embed import kept_encoders
from curate.stages.embed import stage as embed_stage
from curate.stages.embed.kept_encoders import kept_folder, load_kept
from curate.stages.embed.stage import embed


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """An encoder `tiny` with a file of weights; `loads` counts how often it was loaded."""
    weights = tmp_path / "tiny.pt"
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1))
    torch.save(network.state_dict(), weights)

    def tiny(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
        loads.append(variant)
        network.load_state_dict(torch.load(weights, weights_only=True))
        preprocessing = Preprocessing(size=8, resize_to=9, convert="after")
        return Encoder(network.eval(), preprocessing, hash_weights(network))

    loads.clear()
    monkeypatch.setitem(encoders, "tiny", tiny)
    monkeypatch.setitem(_weights_files, "tiny", lambda variant, checkpoint: [str(weights)])
    return weights


loads: list[str] = []


def vectors_of(catalog: Catalog) -> list[np.ndarray]:
    return [read_vectors(location).vectors for location in catalog.vector_files("tiny")]


def embed_into(folder: Path, urls: list[str], **options) -> Catalog:
    catalog = Catalog(folder)
    embed(catalog, urls, encoder="tiny", **{"workers": 1, "device": "cpu", **options})
    return catalog


def test_the_second_run_loads_no_model_and_gives_the_same(tiny, tmp_path):
    urls = write_corpus(tmp_path / "corpus", 2, 30)
    first = embed_into(tmp_path / "first", urls)
    second = embed_into(tmp_path / "second", urls)
    assert loads == [""]
    for one, other in zip(vectors_of(first), vectors_of(second), strict=True):
        assert np.array_equal(one, other)
    columns = "select encoder, weights_sha256, dim, preprocessing from embeddings"
    assert rows(first, columns) == rows(second, columns)
    # The kept encoder is as it was loaded, whatever a catalog asked of it.
    embed_into(tmp_path / "third", urls, decode="exact")
    kept = load_kept("tiny", None)
    assert kept.encoder.preprocessing == Preprocessing(size=8, resize_to=9, convert="after")


@pytest.mark.parametrize("change", ["weights", "network", "description", "version", "code", "gone"])
def test_what_has_changed_is_loaded_and_exported_again(tiny, tmp_path, monkeypatch, change):
    urls = write_corpus(tmp_path / "corpus", 1, 5)
    embed_into(tmp_path / "first", urls)
    (network,) = kept_folder().glob("*.onnx")
    if change == "weights":
        torch.save({name: 2 * value for name, value in torch.load(tiny).items()}, tiny)
    elif change == "network":
        network.write_bytes(network.read_bytes()[:-1] + b"x")
    elif change == "description":
        network.with_suffix(".json").write_text("{}")
    elif change == "version":
        monkeypatch.setattr(kept_encoders.metadata, "version", lambda library: "0")
    elif change == "code":
        monkeypatch.setattr(kept_encoders, "encoder_checksum", lambda spec: "other")
    else:
        network.unlink()
    embed_into(tmp_path / "second", urls)
    assert loads == ["", ""]
    assert load_kept("tiny", None) is not None


def test_nothing_is_kept_where_weights_are_not_known_or_the_cache_is_no_folder(
    tiny, tmp_path, monkeypatch
):
    urls = write_corpus(tmp_path / "corpus", 1, 5)
    monkeypatch.setitem(_weights_files, "tiny", lambda variant, checkpoint: None)
    embed_into(tmp_path / "first", urls)
    assert not kept_folder().exists()
    monkeypatch.setitem(_weights_files, "tiny", lambda variant, checkpoint: [str(tiny)])
    kept_folder().parent.mkdir(parents=True)
    kept_folder().write_text("a file")
    embed_into(tmp_path / "second", urls)
    assert loads == ["", ""]


def test_only_those_used_last_are_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_encoders, "_MAX_KEPT", 2)
    urls = write_corpus(tmp_path / "corpus", 1, 5)
    for number in range(3):
        monkeypatch.setattr(kept_encoders, "encoder_checksum", lambda spec, n=number: str(n))
        embed_into(tmp_path / str(number), urls)
    assert len(list(kept_folder().iterdir())) == 4
    assert load_kept("tiny", None) is not None


def test_cores_without_a_shard_share_the_others(tiny, tmp_path, monkeypatch):
    urls = write_corpus(tmp_path / "corpus", 1, 100)
    used: list[int] = []

    def remember(catalog, embedding, run_id, task, run_task, *arguments):
        def run(task, groups, resources, advance):
            used.append(task.threads)
            return original_map(task, groups, resources, advance=advance)

        original_map = embed_stage.engine.map
        with monkeypatch.context() as patch:
            patch.setattr(embed_stage.engine, "map", run)
            return original(catalog, embedding, run_id, task, run_task, *arguments)

    original = embed_stage._map_shards
    monkeypatch.setattr(embed_stage, "_map_shards", remember)
    one = embed_into(tmp_path / "one", urls, workers=1)
    four = embed_into(tmp_path / "four", urls, workers=4)
    assert used == [1, 4]
    assert np.array_equal(*(vectors_of(catalog)[0] for catalog in (one, four)))
    keys = "select sample_id, key, label, image_checksum, pixels_checksum from samples order by 1"
    assert rows(one, keys) == rows(four, keys)
    assert len(rows(one, keys)) == 100


def test_an_encoder_that_fails_in_a_thread_ends_the_run(tiny, tmp_path, monkeypatch):
    urls = write_corpus(tmp_path / "corpus", 1, 40)
    embed_into(tmp_path / "first", urls)
    kept = load_kept("tiny", None)
    broken = replace(kept.encoder, network=tmp_path / "broken.onnx")
    shutil.copyfile(kept.encoder.network, tmp_path / "broken.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    monkeypatch.setattr(embed_stage, "load_kept", lambda *spec: kept._replace(encoder=broken))
    with pytest.raises(Exception, match="the encoder tiny failed"):
        embed_into(tmp_path / "second", urls, workers=4)
