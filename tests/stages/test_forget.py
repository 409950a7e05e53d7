"""Forgotten samples are in no file any more, and do not come back."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import png, rows, write_shard
from kills import run_and_kill
from PIL import Image

import curate
from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.errors import CurateError, OptionError
from curate.formats.tombstones import Tombstones
from curate.formats.vectors import read_vectors
from curate.stages.cluster.stage import cluster
from curate.stages.dedup.stage import dedup
from curate.stages.embed.stage import embed
from curate.stages.export.stage import export
from curate.stages.forget.patterns import WIDTH, find_patterns, make_patterns
from curate.stages.forget.stage import PLAN_NAME, forget
from curate.stages.gallery import gallery
from curate.stages.probe.stage import probe
from curate.stages.report.stage import report
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.training_data import embed_test_set
from curate.stages.verify import verify
from curate.stages.view.positions import find_positions
from curate.stages.view.table import write_table

PLANTED = "person-0317-holiday"
COPY = "somebody-else-99"  # the same picture under another key
NEAR = "nearly-the-same"
BROKEN = "broken-person-55"


def planted_image() -> bytes:
    return png(4711, (16, 16))


def near_image() -> bytes:
    """Other bytes everywhere, and hardly another vector."""
    pixels = np.asarray(Image.open(io.BytesIO(planted_image()))) ^ 1
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def members_of(image: bytes, number: int) -> dict[str, bytes]:
    return {
        "png": image,
        "cls": str(number % 2).encode(),
        "txt": f"picture {number}".encode(),
        "json": json.dumps({"stars": number}).encode(),
    }


@pytest.fixture(scope="module")
def world_once(tmp_path_factory) -> Path:
    """A corpus with the planted picture, twice and once nearly, and all that the tool writes."""
    folder = tmp_path_factory.mktemp("forget") / "world"
    names = {(0, 4): PLANTED, (2, 1): COPY, (1, 7): NEAR, (1, 2): BROKEN}
    images = {PLANTED: planted_image(), COPY: planted_image(), NEAR: near_image(), BROKEN: b"no"}
    for shard in range(3):
        samples = []
        for position in range(12):
            key = names.get((shard, position), f"{position:04d}")
            image = images.get(key, png(100 * shard + position, (16, 16)))
            samples.append((key, members_of(image, position)))
        write_shard(folder / "corpus" / f"{shard:03d}.tar", samples)
    catalog = Catalog(folder / "catalog")
    shards = str(folder / "corpus")
    embed(catalog, shards, encoder="pixels@4", captions=True, columns="all", workers=1)
    cluster(catalog, k=3)
    probe(catalog, model="ridge")
    score(catalog, ["ssl_prototypes", "random", "el2n", "density"])
    dedup(catalog, eps=0.001)
    select(catalog, keep=1.0, strategy="random", weights=True, name="all")
    select(catalog, keep=0.5, strategy="random", where=f"key <> '{PLANTED}'", name="without")
    export(catalog, "all", folder / "mirror", clients=["open_clip", "wids", "energon", "dali"])
    export(catalog, "all", folder / "packed", samples_per_shard=9)
    export(catalog, "without", folder / "without")
    for name, list_format in (
        ("keys.txt", "keys"),
        ("keys.parquet", "keys"),
        ("all.csv", "csv"),
        ("index.parquet", "index"),
    ):
        export(catalog, "all", folder / name, format=list_format)
    report(catalog)
    gallery(catalog, scoring="random", count=12)
    atlas = catalog.path / "view" / "samples.parquet"
    atlas.parent.mkdir()
    write_table(catalog, atlas, find_positions(catalog, "pixels@4", 100, 0), ["all"], 16)
    return folder


@pytest.fixture
def world(world_once) -> Catalog:
    """The world as it was made, at its own path, which its files name."""
    snapshot = world_once.with_name("snapshot")
    if snapshot.exists():
        shutil.rmtree(world_once)
        shutil.copytree(snapshot, world_once)
    else:
        shutil.copytree(world_once, snapshot)
    return Catalog(world_once / "catalog")


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def find_bytes(folder: Path, vector: bytes) -> set[str]:
    """The files that have a part of the picture, its keys, or its vector."""
    image = planted_image()
    needles = [image[start : start + 24] for start in range(60, len(image) - 40, 24)]
    needles += [PLANTED.encode(), COPY.encode(), vector[:32]]
    return {
        name
        for name, content in read_files(folder).items()
        if any(needle in content for needle in needles)
    }


def raw_vector(catalog: Catalog) -> bytes:
    shard = read_vectors(catalog.vector_file("pixels@4", 0))
    return shard.vectors[4].astype(np.float16).tobytes()


def exported_keys(folder: Path) -> list[str]:
    names: list[str] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += [name for name in tar.getnames() if name.endswith(".png")]
    return names


def check_forgotten(catalog: Catalog, receipt: Path, vector: bytes) -> None:
    folder = catalog.path.parent
    assert find_bytes(folder, vector) == set()
    # What metrics were given may be vectors of unit length, which are other bytes.
    assert rows(catalog, "select * from scoring_inputs") == []
    assert verify(catalog, forgotten=receipt) == []
    assert verify(catalog, check_sources=True) == []
    assert not (catalog.path / PLAN_NAME).exists()
    for name, count in (("mirror", 33), ("packed", 33)):
        keys = exported_keys(folder / name)
        assert len(keys) == count
        assert any(key.endswith(f"{NEAR}.png") for key in keys)  # perhaps after an id
    assert len((folder / "keys.txt").read_text().splitlines()) == 33
    assert len((folder / "all.csv").read_text().splitlines()) == 34
    assert rows(catalog, "select count(*) from samples") == [(33,)]
    stream = list(curate.stream(folder / "index.parquet"))
    assert len(stream) == 33
    assert [sample["__key__"] for sample in stream] == [
        sample["__key__"] for sample in curate.stream(catalog, "all")
    ]


def test_nothing_of_a_forgotten_picture_is_in_any_file(world, tmp_path, caplog):
    vector, receipt = raw_vector(world), tmp_path / "receipt.json"
    showing = find_bytes(world.path.parent, vector)
    assert len(showing) > 10
    assert "catalog/view/samples.parquet" in showing
    assert rows(world, "select distinct scoring from scoring_inputs") != []
    made = forget(world, [PLANTED, "nobody"], rewrite_shards=True, receipt=receipt)
    assert made == str(receipt)
    check_forgotten(world, receipt, vector)
    content = json.loads(receipt.read_text())
    assert content["complete"]
    assert {sample["key"] for sample in content["samples"]} == {PLANTED, COPY}
    assert {copy["key"] for copy in content["near_copies"]} == {NEAR}
    assert {"samples", "scores", "assignments", "members", "duplicates"} <= set(content["removed"])
    kinds = {kind for kind, _ in content["made_with"]}
    assert {"probe", "clustering", "scoring", "selection", "export"} <= kinds
    assert any(path.endswith("report.html") for path in content["deleted"])
    assert "1 not in the catalog: nobody" in caplog.messages


def test_the_same_picture_does_not_come_back_under_another_key(world, tmp_path):
    forget(world, PLANTED, receipt=tmp_path / "receipt.json")
    new = write_shard(
        tmp_path / "new.tar",
        [("new-name", {"png": planted_image()}), ("another", {"png": png(5, (16, 16))})],
    )
    embed(world, str(new), encoder="pixels@4", captions=True, columns="all", workers=1)
    found = rows(
        world, "select key from samples join shards using (shard_id) where url = ?", str(new)
    )
    assert found == [("another",)]
    # Another encoder reads the shards, which still have it, anew.
    embed(world, str(world.path.parent / "corpus"), encoder="pixels@2", workers=1)
    keys = {key for (key,) in rows(world, "select key from samples")}
    assert not keys & {PLANTED, COPY, "new-name"}
    assert verify(world) == []


def test_the_same_picture_does_not_come_back_in_test_shards_that_are_embedded_later(
    world, tmp_path
):
    forget(world, PLANTED, receipt=tmp_path / "receipt.json")
    test = write_shard(
        tmp_path / "test.tar",
        [("new-name", {"png": planted_image()}), ("another", {"png": png(5, (16, 16))})],
    )
    inner = embed_test_set(world, world.require(EmbeddingRecord, None), str(test)).catalog
    assert rows(inner, "select key from samples") == [("another",)]


def test_without_rewriting_the_shards_stay_as_they_are_and_are_named(world, tmp_path):
    before = read_files(world.path.parent / "corpus")
    receipt = tmp_path / "receipt.json"
    forget(world, keys_file=write_keys(tmp_path, PLANTED), receipt=receipt)
    assert read_files(world.path.parent / "corpus") == before
    kept = json.loads(receipt.read_text())["kept_shards"]
    assert [Path(url).name for url in kept] == ["000.tar", "002.tar"]
    assert verify(world, forgotten=receipt) == []
    assert verify(world, check_sources=True) == []


def write_keys(folder: Path, *keys: str) -> Path:
    (folder / "keys-to-forget.txt").write_text("".join(f"{key}\n" for key in keys))
    return folder / "keys-to-forget.txt"


def test_samples_are_named_by_checksum_by_condition_and_by_a_key_of_several(
    world, tmp_path, caplog
):
    ((checksum,),) = rows(
        world, "select printf('%016x', image_checksum) from samples where key = ?", NEAR
    )
    for number, options in enumerate(
        ({"checksums": checksum}, {"where": "label = '1' and stars > 10"})
    ):
        forget(world, **options, receipt=tmp_path / f"{number}.json")
    assert rows(world, "select count(*) from samples") == [(35 - 1 - 3,)]
    forget(world, "0003", receipt=tmp_path / "several.json")
    assert "1 key of several samples, all of which go: 0003 (3)" in caplog.messages
    assert rows(world, "select count(*) from samples") == [(35 - 1 - 3 - 3,)]
    assert verify(world, check_sources=False) == []


def test_a_sample_that_failed_is_forgotten_by_its_key(world, tmp_path):
    forget(world, BROKEN, rewrite_shards=True, receipt=tmp_path / "receipt.json")
    assert rows(world, "select count(*) from failures") == [(0,)]
    assert verify(world) == []


def test_samples_like_a_picture_are_shown_first_and_forgotten_when_told(world, tmp_path):
    picture = tmp_path / "photo.png"
    picture.write_bytes(planted_image())
    other = tmp_path / "other.png"
    other.write_bytes(png(3, (16, 16)))
    options = {"like": [str(picture), str(other)], "eps": 1e-3, "receipt": tmp_path / "r.json"}
    with pytest.raises(CurateError, match="nothing was forgotten yet: 4 samples .* add --yes"):
        forget(world, **options)
    gallery = world.path / "figures" / "forget-like.png"
    with Image.open(gallery) as shown:
        assert shown.width > 3 * 96  # three like the first picture, one like the second
        assert shown.height > 2 * 96
    assert rows(world, "select count(*) from samples") == [(35,)]
    forget(world, **options, yes=True)
    assert not gallery.exists()
    keys = {key for (key,) in rows(world, "select key from samples")}
    assert not keys & {PLANTED, COPY, NEAR}
    assert rows(world, "select count(*) from samples") == [(31,)]
    assert verify(world, forgotten=tmp_path / "r.json") == []


def test_what_is_no_picture_or_like_nothing_is_said(world, tmp_path):
    (tmp_path / "text.png").write_bytes(b"no picture")
    (tmp_path / "new.png").write_bytes(png(999, (16, 16)))
    for name, error, problem in (
        ("none.png", OptionError, "cannot be read"),
        ("text.png", OptionError, "no image to read"),
        ("new.png", CurateError, "no sample has a cosine above 0.9999"),
    ):
        with pytest.raises(error, match=problem):
            forget(world, like=str(tmp_path / name), eps=1e-4, yes=True)
    assert rows(world, "select count(*) from samples") == [(35,)]


def test_what_cannot_be_forgotten_is_said(world, tmp_path):
    for options, problem in (
        ({}, "nothing to forget"),
        ({"checksums": "xyz"}, "16 hexadecimal digits"),
        ({"keys_file": tmp_path / "none.txt"}, "cannot be read"),
        ({"keys": PLANTED, "receipt": world.path / "r.json"}, "cannot be in the catalog"),
    ):
        with pytest.raises(OptionError, match=problem):
            forget(world, **options)
    with pytest.raises(CurateError, match="no sample matches"):
        forget(world, "nobody", receipt=tmp_path / "r.json")
    with pytest.raises(CurateError, match="--where"):
        forget(world, where="nonsense > 1", receipt=tmp_path / "r.json")
    with pytest.raises(CurateError, match="is no receipt"):
        verify(world, forgotten=write_keys(tmp_path, "x"))
    assert rows(world, "select count(*) from samples") == [(35,)]


NUM_PLACES = 20


@pytest.fixture(scope="module")
def places() -> dict[str, np.ndarray]:
    """The random places, once it is known how many there are."""
    return {}


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=pytest.mark.kills if number % 7 else ())
        for number in range(NUM_PLACES)
    ],
)
def test_after_a_kill_at_a_random_place_the_next_call_finishes(
    world, world_once, places, tmp_path, number
):
    vector, receipt = raw_vector(world), tmp_path / "receipt.json"

    def forget_planted() -> None:
        forget(world, PLANTED, rewrite_shards=True, receipt=receipt)

    if "all" not in places:
        total = run_and_kill(forget_planted, None)
        assert total > 1000
        places["all"] = np.random.default_rng(22).integers(1, total, NUM_PLACES)
        receipt.unlink()
        shutil.rmtree(world_once)
        shutil.copytree(world_once.with_name("snapshot"), world_once)
    run_and_kill(forget_planted, int(places["all"][number]))
    if (world.path / PLAN_NAME).exists():
        issues = [issue for issue in verify(world) if "not finished" in issue.problem]
        assert len(issues) == 1
        forget(world)
    elif not receipt.exists() or not json.loads(receipt.read_text())["complete"]:
        # Before anything was written down, nothing was changed but what makes no difference.
        assert rows(world, "select count(*) from samples") == [(35,)]
        forget_planted()
    check_forgotten(world, receipt, vector)


def test_a_proof_finds_what_is_left(world, tmp_path):
    receipt = tmp_path / "receipt.json"
    forget(world, PLANTED, rewrite_shards=True, receipt=receipt)
    (world.path / "figures").mkdir(exist_ok=True)
    for name, content in (("a.bin", planted_image()), ("b.bin", b"x" + PLANTED.encode())):
        (world.path / "figures" / name).write_bytes(b"\0" * 1000 + content)
    subjects = {Path(issue.subject).name for issue in verify(world, forgotten=receipt)}
    assert subjects == {"a.bin", "b.bin"}


def test_tombstones_with_a_salt_say_nothing_of_images(world, tmp_path):
    forget(world, PLANTED, salted=True, receipt=tmp_path / "receipt.json")
    tombstones = Tombstones.load(world.path)
    assert len(tombstones.salt) == 32
    assert len(tombstones.digests) == 1
    forget(world, NEAR, receipt=tmp_path / "second.json")
    both = Tombstones.load(world.path)
    assert both.salt == tombstones.salt
    assert len(both.digests) == 2


def test_patterns_are_found_across_the_pieces_in_which_a_file_is_read(monkeypatch):
    monkeypatch.setattr("curate.stages.forget.patterns._CHUNK", 100)
    data = np.random.default_rng(0).bytes(2000)
    patterns = np.array(sorted(make_patterns(data, 5)), np.uint64)
    assert len(patterns) == 5
    assert find_patterns(io.BytesIO(b"\0" * 333 + data), patterns) == set(patterns.tolist())
    assert find_patterns(io.BytesIO(data[::-1]), patterns) == set()
    assert make_patterns(bytes(1000)) == []
    assert make_patterns(data[: WIDTH - 1]) == []
