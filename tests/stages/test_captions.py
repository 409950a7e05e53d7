"""`curate embed --captions`: vectors of captions, with the guarantees of those of images."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import png, rows, run_curate, write_corpus, write_shard
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.encoders import pixels as pixels_encoder
from curate.errors import CurateError
from curate.formats.vectors import read_vectors
from curate.stages.embed import worker
from curate.stages.embed.stage import embed
from curate.stages.verify import verify
from curate.storage import files
from curate.training.contrastive import retrieval_hits, train_projection

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220)}
COLOURS |= {"yellow": (230, 220, 50), "white": (240, 240, 240), "black": (10, 10, 10)}


def write_captioned_shards(folder: Path) -> list[str]:
    """Two shards: in the first some samples have no caption, in the second all."""
    texts = (b"a red hat", None, b" \n", b"hat, red", b"A RED hat!")
    captioned = [
        (f"{number}", {"png": png(number)} | ({"txt": text} if text is not None else {}))
        for number, text in enumerate(texts)
    ]
    bare = [(f"{number}", {"png": png(10 + number)}) for number in range(3)]
    return [
        str(write_shard(folder / "000.tar", captioned)),
        str(write_shard(folder / "001.tar", bare)),
    ]


@pytest.fixture
def captioned(tmp_path: Path) -> Catalog:
    """The two shards, embedded with their captions."""
    catalog = Catalog(tmp_path / "catalog")
    shards = write_captioned_shards(tmp_path / "corpus")
    embed(catalog, shards, encoder="pixels", captions=True, workers=1)
    return catalog


def stored_files(catalog: Catalog) -> dict[str, bytes]:
    """What the folder of the embeddings holds, by path."""
    folder = catalog.path / "embeddings"
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_file_of_its_own_has_the_vectors_of_the_samples_with_a_caption(captioned):
    location = captioned.caption_file("pixels", 0)
    assert captioned.caption_files("pixels") == {location: 3}
    shard = read_vectors(location)
    assert shard.sample_ids.tolist() == [0, 3, 4]
    first, second, third = shard.vectors
    assert first.sum() == 3
    assert second.sum() == 2
    assert third.tolist() == first.tolist()  # words are compared without case
    assert (first >= second).all()
    assert rows(captioned, "select caption from samples where shard_id = 0 order by 1") == [
        ("A RED hat!",),
        ("a red hat",),
        ("hat, red",),
        (None,),
        (None,),
    ]
    checksums = rows(captioned, "select captions_checksum from embedded_shards order by shard_id")
    assert checksums[1] == ("",)
    assert verify(captioned) == []


def test_the_shards_are_read_once(tmp_path, monkeypatch):
    opened = []
    open_binary = files.open_binary
    monkeypatch.setattr(
        worker.files,
        "open_binary",
        lambda url, **options: opened.append(url) or open_binary(url, **options),
    )
    shards = write_captioned_shards(tmp_path / "corpus")
    embed(tmp_path / "catalog", shards, encoder="pixels", captions=True, workers=1)
    assert [url for url in opened if url.endswith(".tar")] == shards


def test_two_workers_give_the_same_files_as_one_and_images_the_same_vectors(tmp_path):
    shards = write_corpus(tmp_path / "corpus")
    by_one, by_two, bare = (Catalog(tmp_path / name) for name in ("one", "two", "bare"))
    embed(by_one, shards, encoder="pixels", captions=True, workers=1, batch_size=7)
    embed(by_two, shards, encoder="pixels", captions=True, workers=2)
    embed(bare, shards, encoder="pixels", workers=1)
    assert len(by_one.caption_files("pixels")) == 3
    assert stored_files(by_one) == stored_files(by_two)
    images = {name: data for name, data in stored_files(by_one).items() if "captions" not in name}
    assert images == stored_files(bare)
    assert bare.caption_files("pixels") == {}


def test_an_embedding_goes_on_as_it_was_begun(captioned, tmp_path):
    extra = str(
        write_shard(tmp_path / "corpus" / "extra.tar", [("x", {"png": png(1), "txt": b"x"})])
    )
    embed(captioned, [extra], encoder="pixels")
    assert list(captioned.caption_files("pixels").values()) == [3, 1]


def test_captions_are_not_added_to_an_embedding_that_was_begun_without(catalog, shards):
    before = stored_files(catalog)
    with pytest.raises(
        CurateError, match="begun without --captions: give the one with captions another --name"
    ):
        embed(catalog, shards, encoder="pixels", captions=True)
    assert stored_files(catalog) == before
    embed(catalog, shards, encoder="pixels", captions=True, name="pairs", workers=1)
    assert sum(catalog.caption_files("pairs").values()) == 30
    weights = rows(catalog, "select count(distinct weights_sha256) from embeddings")
    assert weights == [(2,)]  # those of the text tower are part of the checksum


def test_an_encoder_without_a_text_tower_is_wrong_usage(tmp_path, shards):
    options = ("--captions", "--encoder", "efficientnet_lite0", "-c", tmp_path / "catalog")
    result = run_curate("embed", *shards, *options)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "curate: the encoder efficientnet_lite0 has no text tower: use open_clip:MODEL/PRETRAINED"
    ]
    assert not (tmp_path / "catalog").exists()


def test_a_lost_file_is_noticed_and_made_again(captioned, tmp_path):
    before = stored_files(captioned)
    Path(captioned.caption_file("pixels", 0)).unlink()
    (issue,) = verify(captioned)
    assert "captions/00000000.parquet: it is gone" in str(issue)
    embed(captioned, [str(tmp_path / "corpus")], encoder="pixels")
    assert stored_files(captioned) == before
    assert verify(captioned) == []


def test_a_moved_corpus_keeps_its_captions(captioned, tmp_path):
    before = stored_files(captioned)
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    embed(captioned, [str(tmp_path / "elsewhere")], encoder="pixels")
    assert stored_files(captioned) == before
    assert sum(captioned.caption_files("pixels").values()) == 3


def test_a_mended_shard_leaves_no_vectors_of_its_old_captions(tmp_path):
    path = Path(write_corpus(tmp_path / "corpus", 1)[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: 20 * 512 + 700])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(path)], encoder="pixels", captions=True)
    assert len(catalog.caption_files("pixels")) == 1
    path.write_bytes(whole)
    embed(catalog, [str(path)], encoder="pixels")
    assert catalog.caption_files("pixels") == {catalog.caption_file("pixels", 1): 10}
    assert sorted(stored_files(catalog)) == [
        "pixels/00000001.parquet",
        "pixels/captions/00000001.parquet",
    ]
    assert verify(catalog) == []


def test_a_caption_whose_vector_does_not_fit_makes_its_sample_a_failure(tmp_path, monkeypatch):
    def count_letters(texts: list[str]) -> np.ndarray:
        return np.array([[np.inf if "hat," in text else len(text)] for text in texts])

    monkeypatch.setattr(pixels_encoder, "count_words", count_letters)
    catalog = Catalog(tmp_path / "catalog")
    shards = write_captioned_shards(tmp_path / "corpus")
    embed(catalog, shards, encoder="pixels@7", captions=True, workers=1)
    assert rows(catalog, "select key, stage, error from failures") == [
        ("3", "encode", "the vector of its caption is not finite in half precision")
    ]
    counts = rows(catalog, "select num_embedded, num_failed from embedded_shards order by shard_id")
    assert counts == [(4, 1), (3, 0)]
    assert list(catalog.caption_files("pixels@7").values()) == [2]
    assert verify(catalog) == []


def test_no_caption_is_too_long(tmp_path):
    members = {"png": png(1), "txt": b"hat " * 100_000}
    catalog = Catalog(tmp_path / "catalog")
    embed(
        catalog,
        [str(write_shard(tmp_path / "a.tar", [("a", members)]))],
        encoder="pixels",
        captions=True,
    )
    (vector,) = read_vectors(catalog.caption_file("pixels", 0)).vectors
    assert vector.max() == 500  # of the first 2,000 characters
    assert rows(catalog, "select length(caption) from samples") == [(399_999,)]


def write_squares(path: Path, num_samples: int, seed: int) -> str:
    """A shard of coloured squares whose captions name the size, the colour and the place."""
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(num_samples):
        colour = generator.choice(list(COLOURS))
        size, edge = [("small", 4), ("large", 6)][generator.integers(2)]
        top, left = generator.integers(2, size=2)
        pixels = generator.normal(128, 20, (12, 12, 3))
        rows_, columns = (
            slice(0, edge) if first else slice(12 - edge, 12) for first in (top, left)
        )
        pixels[rows_, columns] = COLOURS[colour] + generator.normal(0, 15, 3)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, format="PNG")
        place = f"{'top' if top else 'bottom'} {'left' if left else 'right'}"
        caption = f"a {size} {colour} square at the {place}"
        samples.append((f"{number:04d}", {"png": file.getvalue(), "txt": caption.encode()}))
    return str(write_shard(path, samples))


def load_pairs(catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of all images and of all captions, of a corpus where each image has one."""
    images = [read_vectors(file).vectors for file in catalog.vector_files("pixels")]
    texts = [read_vectors(file).vectors for file in catalog.caption_files("pixels")]
    return np.concatenate(images), np.concatenate(texts)


def test_captions_that_say_what_is_to_be_seen_are_found_again(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    train = write_squares(tmp_path / "corpus" / "train.tar", 300, seed=0)
    test = write_squares(tmp_path / "corpus" / "test.tar", 100, seed=1)
    embed(catalog, [train, test], encoder="pixels", captions=True)
    images, texts = load_pairs(catalog)
    heads = train_projection(images[:300], texts[:300], np.arange(300)[None], [0], epochs=30)
    hits = retrieval_hits(heads, images[300:], texts[300:])
    assert hits.num_captions > 40
    assert hits.image_to_text_1.mean() > 0.5
    assert hits.text_to_image_1.mean() > 0.5
