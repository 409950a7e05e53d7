"""Shards as other people's tools and scripts leave them; see also ../shared/cases."""

import json
import tarfile
from pathlib import Path

import pytest
from conftest import png, rows, write_shard

from curate.catalog.catalog import Catalog
from curate.catalog.samples import load_locations
from curate.errors import CurateError, OptionError
from curate.formats.images import Preprocessing
from curate.formats.sample_locations import read_image
from curate.formats.samples import LAST_DOT, iterate_samples, split_name
from curate.formats.tar import TarReader
from curate.stages.embed.stage import embed
from curate.stages.export.stage import export
from curate.stages.select.stage import select
from curate.stages.verify import verify

Members = dict[str, bytes]


def embed_samples(
    folder: Path, samples: list[tuple[str, Members]], caplog, **options
) -> tuple[Catalog, str]:
    """Embed one shard by pixels; returns its catalog, and what was said."""
    path = write_shard(folder / "corpus" / "000.tar", samples)
    catalog = Catalog(folder / "catalog")
    caplog.clear()
    with caplog.at_level("INFO", "curate"):
        embed(catalog, str(path), encoder="pixels", workers=1, **options)
    return catalog, caplog.text


def dotted(count: int = 4) -> list[tuple[str, Members]]:
    """Keys with dots, of which the part before the first one repeats."""
    return [(f"v1/22.{i:02d}", {"png": png(i), "cls": b"1"}) for i in range(count)]


def frames() -> list[tuple[str, Members]]:
    return [
        (f"s{i}", {"frames.0.png": png(i), "frames.1.png": png(9 + i, (20, 10)), "cls": b"0"})
        for i in range(3)
    ]


def test_keys_with_dots_do_not_lose_images_in_silence(tmp_path, caplog):
    catalog, said = embed_samples(tmp_path, dotted(), caplog)
    assert rows(catalog, "select key, label from samples") == [("v1/22", None)]
    assert "1 sample with several images, of which the first was read and 3 were not" in said
    assert "'v1/22' (00.png, 01.png, 02.png, 03.png)" in said
    assert "1 sample with several labels, of which none was read" in said
    assert "--key last-dot" in said


def test_a_key_may_end_at_the_last_dot(tmp_path, caplog):
    catalog, said = embed_samples(tmp_path, dotted(), caplog, key="last-dot")
    assert rows(catalog, "select key, label, member from samples order by 1") == [
        (f"v1/22.{i:02d}", "1", "png") for i in range(4)
    ]
    assert "several" not in said
    name = select(catalog, keep=0.5, strategy="random")
    out = Path(export(catalog, name, tmp_path / "out"))
    assert verify(catalog, [out], check_sources=True) == []
    with (out / "000.tar").open("rb") as file:
        assert len(list(iterate_samples(TarReader(file), LAST_DOT))) == 2
    locations = load_locations(catalog, rows_of_ids(catalog))
    image = read_image(
        locations.urls[0], int(locations.offsets[2]), int(locations.lengths[2]), SQUARE
    )
    assert image.shape == (8, 8, 3)


SQUARE = Preprocessing(8, 8, resize="squash")


def rows_of_ids(catalog: Catalog):
    with catalog.reading() as connection:
        ids = connection.execute("select sample_id from samples order by 1").fetchnumpy()
    return ids["sample_id"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("v1/22.00.PNG", ("v1/22.00", "png")),
        ("a.b/c.jpg", ("a.b/c", "jpg")),
        (".hidden.jpg", ("", "")),
        ("a/.b", ("", "")),
        ("README", ("", "")),
    ],
)
def test_names_are_divided_at_the_last_dot(name, parts):
    assert split_name(name, LAST_DOT) == parts


def test_members_with_a_name_before_their_extension_are_found(tmp_path, caplog):
    samples = [
        (f"s{i}", {"input.png": png(i), "output.txt": b"a dog", "target.cls": b"1"})
        for i in range(3)
    ]
    sql = "select key, label, caption, member from samples order by 1"
    expected = [(f"s{i}", "1", "a dog", "input.png") for i in range(3)]
    catalog, said = embed_samples(tmp_path / "unnamed", samples, caplog)
    assert rows(catalog, sql) == expected
    assert "no option reads" not in said
    options = {"image": "input.png", "caption": "output.txt", "label": "target.cls"}
    catalog, _ = embed_samples(tmp_path / "named", samples, caplog, **options)
    assert rows(catalog, sql) == expected


def test_an_image_beside_its_mask_is_clear_and_the_mask_is_counted(tmp_path, caplog):
    samples = [(f"s{i}", {"mask.png": png(9, (60, 30)), "png": png(i)}) for i in range(3)]
    catalog, said = embed_samples(tmp_path, samples, caplog)
    assert rows(catalog, "select distinct width from samples") == [(12,)]
    assert "members that no option reads: mask.png (3)" in said
    assert "several" not in said


def test_of_several_frames_the_first_is_read_and_said_or_the_named_one(tmp_path, caplog):
    catalog, said = embed_samples(tmp_path / "first", frames(), caplog)
    assert rows(catalog, "select distinct member, width from samples") == [("frames.0.png", 12)]
    assert said.count("3 samples with several images") == 1
    assert "name one with --image frames.1.png" in said
    catalog, said = embed_samples(tmp_path / "named", frames(), caplog, image="frames.1.png")
    assert rows(catalog, "select distinct member, width from samples") == [("frames.1.png", 20)]
    assert "several" not in said
    locations = load_locations(catalog, rows_of_ids(catalog))
    offset, length = int(locations.offsets[1]), int(locations.lengths[1])
    wide = Preprocessing(20, 20, resize="longest")
    shown = read_image(locations.urls[0], offset, length, wide, locations.image)
    assert shown.any(axis=2).sum() == 200  # 20 by 10 pixels, not 12 by 10


def test_a_depth_map_that_comes_first_is_said(tmp_path, caplog):
    samples = [(f"s{i}", {"depth.png": png(0), "image.jpg": png(i)}) for i in range(3)]
    _, said = embed_samples(tmp_path, samples, caplog)
    assert "name one with --image image.jpg" in said


def test_a_named_image_that_is_missing_is_a_failure(tmp_path, caplog):
    samples = [("a", {"input.png": png(1)}), ("b", {"png": png(2)})]
    catalog, _ = embed_samples(tmp_path, samples, caplog, image="input.png")
    assert rows(catalog, "select key, error from failures") == [
        ("b", "no .input.png among its members (.png)")
    ]


@pytest.mark.parametrize(
    ("member", "remedy"),
    [
        ("class.txt", "--label class.txt"),
        ("label", "--label label"),
        ("target.label", "--label target.label"),
        ("json", "--label json:tags.class.id"),
    ],
)
def test_labels_that_were_not_found_are_said(tmp_path, caplog, member, remedy):
    content = json.dumps({"tags": {"class": {"id": 1}}}).encode() if member == "json" else b"1"
    samples = [(f"s{i}", {"png": png(i), member: content}) for i in range(3)]
    catalog, said = embed_samples(tmp_path, samples, caplog)
    assert rows(catalog, "select count(label), count(caption) from samples") == [(0, 0)]
    assert "samples have no label, but something that looks like one" in said
    assert f"name it with {remedy}" in said


def test_a_label_may_be_in_any_member(tmp_path, caplog):
    samples = [(f"s{i}", {"png": png(i), "class.txt": b" dog\n"}) for i in range(3)]
    catalog, said = embed_samples(tmp_path, samples, caplog, label="class.txt")
    assert rows(catalog, "select distinct label, caption from samples") == [("dog", None)]
    assert "looks like" not in said


def test_capital_letters_of_an_extension_are_kept_in_the_catalog(tmp_path, caplog):
    catalog, _ = embed_samples(tmp_path, [("a", {"JPG": png(1)})], caplog)
    assert rows(catalog, "select member from samples") == [("JPG",)]


def test_all_embeddings_of_a_catalog_read_the_same_members(tmp_path, caplog):
    catalog, _ = embed_samples(tmp_path, frames(), caplog, image="frames.1.png")
    shard = str(tmp_path / "corpus" / "000.tar")
    with pytest.raises(CurateError, match=r"read with --image frames\.1\.png, not frames\.0\.png"):
        embed(catalog, shard, encoder="pixels@4", name="b", image="frames.0.png")
    embed(catalog, shard, encoder="pixels@4", name="b", workers=1)
    assert rows(catalog, "select distinct preprocessing->>'image' from embeddings") == [
        ("frames.1.png",)
    ]


@pytest.mark.parametrize(
    "options",
    [{"image": "a/b"}, {"caption": ""}, {"label": "json"}, {"label": "a:b"}, {"key": "middle"}],
)
def test_what_is_no_extension_is_wrong_usage(tmp_path, options):
    with pytest.raises(OptionError):
        embed(tmp_path / "catalog", "x.tar", encoder="pixels", **options)
    assert not (tmp_path / "catalog").exists()


@pytest.fixture
def gap(tmp_path) -> str:
    """Shards 0, 1 and 3 of a pattern for five."""
    for number in (0, 1, 3):
        write_shard(tmp_path / f"gap-{number:05d}.tar", [(f"{number}a", {"png": png(number)})])
    return str(tmp_path / "gap-{00000..00004}.tar")


def test_all_shards_that_are_missing_are_named(tmp_path, gap):
    with pytest.raises(CurateError, match="2 of 5 shards are missing: ") as error:
        embed(tmp_path / "catalog", gap, encoder="pixels")
    assert "gap-00002.tar" in str(error.value)
    assert "gap-00004.tar" in str(error.value)
    assert "the 3 others with --allow-missing" in str(error.value)
    assert not (tmp_path / "catalog").exists()


def test_missing_shards_may_be_left_out(tmp_path, gap, caplog):
    embed(tmp_path / "catalog", gap, encoder="pixels", workers=1, allow_missing=True)
    assert "2 of 5 shards are missing" in caplog.text
    assert rows(Catalog(tmp_path / "catalog"), "select count(*) from samples") == [(3,)]
    with pytest.raises(CurateError, match="2 of 2 shards are missing"):
        embed(
            tmp_path / "none", str(tmp_path / "no-{0,1}.tar"), encoder="pixels", allow_missing=True
        )


def test_a_mirror_names_every_shard_of_a_folder(tmp_path):
    for number in range(3):
        samples = [(f"{number}-{i}", {"png": png(i), "cls": str(number).encode()}) for i in (0, 1)]
        write_shard(tmp_path / "in" / f"{number:03d}.tar", samples)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, str(tmp_path / "in"), encoder="pixels", workers=1)
    name = select(catalog, keep=1.0, strategy="random", where="label <> '1'")
    out = Path(export(catalog, name, tmp_path / "out"))
    with tarfile.open(out / "001.tar") as tar:
        assert tar.getnames() == []
    assert sorted(path.name for path in out.glob("*.tar")) == ["000.tar", "001.tar", "002.tar"]
    assert verify(catalog, [out], check_sources=True) == []


def test_a_copy_of_a_shard_that_is_there_already_is_said(tmp_path, caplog):
    catalog, said = embed_samples(tmp_path, [("a", {"png": png(1)})], caplog)
    assert "bytes of another" not in said
    copy = tmp_path / "corpus" / "000 (1).tar"
    copy.write_bytes((tmp_path / "corpus" / "000.tar").read_bytes())
    embed(catalog, str(tmp_path / "corpus"), encoder="pixels", workers=1)
    assert "1 shard with the bytes of another" in caplog.text
    assert "000 (1).tar' and" in caplog.text
