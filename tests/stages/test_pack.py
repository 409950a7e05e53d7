"""Images as people have them become shards: class folders, tables with paths, Parquet files."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import png, rows, same_files
from PIL import Image

import curate
from curate.catalog.catalog import Catalog
from curate.cli.app import main
from curate.errors import CurateError, OptionError
from curate.stages.pack import worker

# webdataset leaves its files for the collector to close.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG")
    return file.getvalue()


def write_classes(folder: Path) -> Path:
    """Two classes of six and four images, one of them with dots and one deeper in its name."""
    names = [f"cat/{i}.jpg" for i in range(4)] + ["cat/a.b.c.JPG", "cat/deep/x.png"]
    names += [f"dog/{i}.jpg" for i in range(4)]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number) if name.endswith("png") else jpeg(number))
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "cat" / "notes.txt").write_text("no image")
    return folder


def read_shards(folder: str | Path) -> dict[str, dict[str, bytes]]:
    """The samples of all shards as webdataset reads them, by key."""
    urls = sorted(str(path) for path in Path(folder).glob("*.tar"))
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    return {
        sample["__key__"]: {name: data for name, data in sample.items() if name[0] != "_"}
        for sample in dataset
    }


def test_class_folders_become_shards_that_loaders_read(tmp_path):
    source = write_classes(tmp_path / "photos")
    out = curate.pack(str(source), tmp_path / "shards", per_shard=4)
    samples = read_shards(out)
    assert len(samples) == 10
    assert samples["cat/a_b_c"]["jpg"] == (source / "cat" / "a.b.c.JPG").read_bytes()
    assert samples["cat/deep/x"]["png"] == (source / "cat" / "deep" / "x.png").read_bytes()
    assert samples["dog/3"]["cls"] == b"1"
    assert json.loads(samples["dog/3"]["json"]) == {"class": "dog", "path": "dog/3.jpg"}
    # As open_clip reads the sizes: a number for each shard of the folder, by its file name.
    sizes = json.loads((Path(out) / "sizes.json").read_text())
    assert sizes == {"00000.tar": 4, "00001.tar": 4, "00002.tar": 2}
    catalog = Catalog(tmp_path / "catalog")
    curate.embed(catalog, out, encoder="pixels", label="json:class", columns="path", workers=1)
    assert rows(catalog, "select label, count(*) from samples group by 1 order by 1") == [
        ("cat", 6),
        ("dog", 4),
    ]
    curate.select(catalog, keep=0.5, strategy="random", name="half")
    curate.export(catalog, "half", tmp_path / "half")
    assert len(read_shards(tmp_path / "half")) == 5


def read_as_open_clip_does(folder: Path) -> tuple[int, list[bytes]]:
    """What an epoch takes: the sum of sizes.json, and the images of all shards named by braces."""
    sizes = json.loads((folder / "sizes.json").read_text())
    first, last = Path(min(sizes)).stem, Path(max(sizes)).stem
    urls = webdataset.shardlists.expand_urls(f"{folder}/{{{first}..{last}}}.tar")
    images = []
    for url in urls:
        with tarfile.open(url) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None and member.name.endswith((".jpg", ".png")):
                    images.append(stream.read())
    return sum(sizes[Path(url).name] for url in urls), images


def test_from_class_folders_to_training_programs_with_each_picture_once(tmp_path):
    source = write_classes(tmp_path / "photos")
    (source / "cat" / "again.jpg").write_bytes((source / "dog" / "2.jpg").read_bytes())
    (source / "dog" / "again.jpg").write_bytes((source / "dog" / "3.jpg").read_bytes())
    catalog = Catalog(tmp_path / "catalog")
    shards = curate.pack(str(source), tmp_path / "shards", per_shard=5)
    curate.embed(catalog, shards, encoder="pixels", label="json:class", workers=1)
    unique = curate.dedup(catalog, exact=True, workers=1)
    assert len(read_shards(shards)) == 12
    curate.select(catalog, within=unique, keep=0.8, strategy="random", name="kept")
    out = Path(curate.export(catalog, "kept", tmp_path / "out", clients=["open_clip"], workers=1))

    by_webdataset = [sample.get("jpg") or sample["png"] for sample in read_shards(out).values()]
    num_samples, by_open_clip = read_as_open_clip_does(out)
    assert rows(catalog, "select num_samples from selections where selection = 'kept'") == [(8,)]
    assert num_samples == len(by_webdataset) == len(set(by_webdataset)) == 8
    assert sorted(by_open_clip) == sorted(by_webdataset)


def test_the_same_source_gives_the_same_bytes_with_any_workers(tmp_path):
    source = str(write_classes(tmp_path / "photos"))
    curate.pack(source, tmp_path / "one", per_shard=3)
    curate.pack(source, tmp_path / "two", per_shard=3, workers=2)
    same_files(tmp_path / "one", tmp_path / "two")
    with tarfile.open(tmp_path / "one" / "00000.tar") as tar:
        assert {name.split("/")[0] for name in tar.getnames()} == {"cat", "dog"}  # shuffled


def test_a_run_that_was_stopped_goes_on_and_nothing_is_half_written(tmp_path, monkeypatch):
    source = str(write_classes(tmp_path / "photos"))
    curate.pack(source, tmp_path / "whole", per_shard=2)
    read_file, calls = worker._read_file, []

    def stop_in_the_third_shard(path: str):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return read_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "_read_file", stop_in_the_third_shard)
        with pytest.raises(KeyboardInterrupt):
            curate.pack(source, tmp_path / "out", per_shard=2)
    assert sorted(os.listdir(tmp_path / "out")) == ["00000.tar", "00001.tar", "pack.json"]
    before = (tmp_path / "out" / "00000.tar").stat().st_mtime_ns
    curate.pack(source, tmp_path / "out", per_shard=2)
    assert (tmp_path / "out" / "00000.tar").stat().st_mtime_ns == before
    same_files(tmp_path / "out", tmp_path / "whole")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    source = write_classes(tmp_path / "photos")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(CurateError, match="holds other files: choose a new folder"):
        curate.pack(str(source), tmp_path / "out")
    curate.pack(str(source), tmp_path / "shards")
    with pytest.raises(CurateError, match="packed from other files or with other options"):
        curate.pack(str(source), tmp_path / "shards", per_shard=3)
    (source / "dog" / "new.jpg").write_bytes(jpeg(99))
    with pytest.raises(CurateError, match="packed from other files or with other options"):
        curate.pack(str(source), tmp_path / "shards")


def test_a_table_of_paths_keeps_its_order_and_its_columns(tmp_path, caplog):
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "images" / "text.jpg").write_text("no image")
    with (tmp_path / "metadata.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "text", "license"])
        for number in (2, 0, 1):
            writer.writerow([f"images/{number}.jpg", "dog" if number else "cat", f"n {number}", 1])
        writer.writerow(["images/gone.jpg", "cat", "gone", 1])
        writer.writerow(["images/text.jpg", "cat", "text", 1])
        writer.writerow(["/etc/passwd", "cat", "text", 1])
    out = curate.pack(str(tmp_path), tmp_path / "shards")
    samples = read_shards(out)
    assert list(samples) == ["000000000", "000000001", "000000002"]
    assert samples["000000000"]["jpg"] == jpeg(2)
    assert samples["000000000"]["cls"] == b"1"
    assert samples["000000000"]["txt"] == b"n 2"
    assert json.loads(samples["000000000"]["json"]) == {
        "label": "dog",
        "license": 1,
        "path": "images/2.jpg",
    }
    assert "images/gone.jpg: No such file or directory" in caplog.text
    assert json.loads((Path(out) / "pack.json").read_text())["left_out"] == 3
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "metadata.csv"), str(tmp_path / "again")])
    assert ended.value.code == 3


def test_json_lines_and_columns_by_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    line = {"where": str(tmp_path / "a.jpg"), "what": 3, "said": "hello", "n": {"x": [1]}}
    (tmp_path / "list.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(OptionError, match="name it with --image: where, what, said, n"):
        curate.pack(str(tmp_path / "list.jsonl"), tmp_path / "out")
    out = curate.pack(
        str(tmp_path / "list.jsonl"), tmp_path / "out", image="where", label="what", caption="said"
    )
    sample = read_shards(out)["000000000"]
    assert (sample["cls"], sample["txt"]) == (b"3", b"hello")
    assert json.loads(sample["json"])["n"] == {"x": [1]}


def write_parquet(path: Path, seeds: list[int], **columns: list) -> None:
    """The layout of Hugging Face's datasets, with class names in the file's metadata."""
    images = [{"bytes": jpeg(seed), "path": f"{seed}.jpg"} for seed in seeds]
    table = pa.table({"image": images, "label": [seed % 2 for seed in seeds], **columns})
    features = {"label": {"names": ["even", "odd"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)


def test_parquet_files_of_hugging_face_become_shards(tmp_path):
    folder = tmp_path / "data"
    write_parquet(folder / "train-00000-of-00002.parquet", list(range(7)))
    write_parquet(folder / "train-00001-of-00002.parquet", list(range(7, 12)))
    out = curate.pack(str(folder / "train-*.parquet"), tmp_path / "out", per_shard=5)
    samples = read_shards(out)
    assert [sample["jpg"] for sample in samples.values()] == [jpeg(seed) for seed in range(12)]
    assert list(samples) == [f"{number:09d}" for number in range(12)]
    assert samples["000000009"]["cls"] == b"1"
    assert json.loads(samples["000000009"]["json"]) == {"class": "odd", "path": "9.jpg"}
    assert json.loads((Path(out) / "sizes.json").read_text()) == {
        "00000.tar": 5,
        "00001.tar": 5,
        "00002.tar": 2,
    }
    write_parquet(folder / "test-00000-of-00001.parquet", [1])
    with pytest.raises(CurateError, match=r"several splits \(test, train\): pack each by itself"):
        curate.pack(str(folder), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_plain_bytes_and_rows_without_an_image(tmp_path):
    table = pa.table({"image": [jpeg(1), None, b"junk", png(2)], "class": ["b", "a", "a", "a"]})
    pq.write_table(table, tmp_path / "t.parquet")
    out = curate.pack(str(tmp_path / "t.parquet"), tmp_path / "out")
    samples = read_shards(out)
    assert {key: sorted(sample) for key, sample in samples.items()} == {
        "000000000": ["cls", "jpg", "json"],
        "000000003": ["cls", "json", "png"],
    }
    assert samples["000000000"]["cls"] == b"1"
    assert json.loads((Path(out) / "pack.json").read_text())["left_out"] == 2


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda folder: None, "has no images"),
        (lambda folder: write_classes(folder / "train"), r"holds splits \(train\), not classes"),
        (lambda folder: [(folder / f"{n}.csv").write_text("x") for n in "ab"], "several tables"),
        (lambda folder: (folder / "t.csv").write_text("a,b\n1,2\n"), "name it with --image: a, b"),
    ],
)
def test_a_folder_that_is_no_source_is_refused(tmp_path, make, match):
    folder = tmp_path / "source"
    folder.mkdir()
    make(folder)
    with pytest.raises(CurateError, match=match):
        curate.pack(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_name_have_keys_of_their_own(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "c" / "a.png").write_bytes(png(1))
    out = curate.pack(str(tmp_path), tmp_path.parent / f"{tmp_path.name}-out")
    assert sorted(read_shards(out)) == ["c/a_jpg", "c/a_png"]


def test_a_recipe_packs_and_embeds(tmp_path):
    source = write_classes(tmp_path / "photos")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[pack]\nsource = "{source}"\nout = "{tmp_path}/shards"\n'
        f'[embed]\nshards = "{tmp_path}/shards"\nencoder = "pixels"\ncolumns = "all"\nworkers = 1\n'
        f'[import]\ntable = "{tmp_path}/t.csv"\nkey = "key"\n'
    )
    (tmp_path / "t.csv").write_text("key,x\ncat/0,1\n")
    curate.run(recipe, tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    assert rows(catalog, "select path, x from sample_scores where key = 'cat/0'") == [
        ("cat/0.jpg", 1)
    ]
