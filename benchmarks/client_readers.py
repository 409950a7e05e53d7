"""How each client reads what curate wrote: `python client_readers.py READER FOLDER`, as JSON.

Run by benchmarks/clients.py in an environment that has this client. A reader's docstring is the
command that the table shows. It returns the client's version and what it read, in any order:
samples as [key, label, caption, SHA-256 of the image's bytes or pixels], where a client gives no
such thing None; rows of tables as they are.
"""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Sample = list[str | None]


def digest(data: bytes) -> str:
    """What stands for an image, or for vectors."""
    return hashlib.sha256(data).hexdigest()


def digest_pixels(image: Any) -> str:
    """Of a picture that a client has decoded."""
    return digest(image.convert("RGB").tobytes())


def digest_tensor(tensor: Any) -> str:
    """Of the floats from 0 to 1 that torchvision's ToTensor makes: [3, height, width]."""
    return digest((tensor * 255).round().byte().permute(1, 2, 0).contiguous().numpy().tobytes())


def digest_vectors(vectors: Iterable[Iterable[float]]) -> str:
    """Of rows of numbers, as float32."""
    import numpy as np

    return digest(np.asarray([list(row) for row in vectors], np.float32).tobytes())


def from_bytes(sample: dict[str, Any]) -> Sample:
    """A sample whose members nobody has decoded."""
    return [
        sample["__key__"],
        sample["cls"].decode(),
        sample["txt"].decode(),
        digest(sample["png"]),
    ]


def webdataset_shards(folder: Path) -> list[Sample]:
    """webdataset.WebDataset("OUT/{000..002}.tar", shardshuffle=False)"""
    import webdataset

    samples = webdataset.WebDataset(str(folder / "{000..002}.tar"), shardshuffle=False)
    return [from_bytes(sample) for sample in samples]


def wids_index(folder: Path) -> list[Sample]:
    """wids.ShardListDataset("OUT/wids.json")"""
    import wids

    dataset = wids.ShardListDataset(str(folder / "wids.json"), transformations=[])
    read: list[Sample] = []
    for sample in dataset:
        parts = {name.lstrip("."): content for name, content in sample.items()}
        members = {name: parts[name].getvalue() for name in ("cls", "txt", "png")}
        read.append(from_bytes({"__key__": parts["__key__"], **members}))
    return read


def datasets_folder(folder: Path) -> list[Sample]:
    """datasets.load_dataset("OUT", split="train")"""
    import datasets

    return _from_datasets(datasets.load_dataset(str(folder), split="train"))


def datasets_webdataset(folder: Path) -> list[Sample]:
    """datasets.load_dataset("webdataset", data_dir="OUT", split="train", streaming=True)"""
    import datasets

    return _from_datasets(
        datasets.load_dataset("webdataset", data_dir=str(folder), split="train", streaming=True)
    )


def _from_datasets(samples: Iterable[dict[str, Any]]) -> list[Sample]:
    return [
        [one["__key__"], str(one["cls"]), one["txt"], digest_pixels(one["png"])] for one in samples
    ]


def open_clip_training(folder: Path) -> list[Sample]:
    """open_clip_train.data.get_wds_dataset (--train-data "OUT/{000..002}.tar")"""
    import argparse

    from open_clip_train.data import get_wds_dataset
    from torchvision.transforms.functional import to_tensor

    arguments = argparse.Namespace(
        train_data=str(folder / "{000..002}.tar"),
        train_data_upsampling_factors=None,
        train_num_samples=None,  # sizes.json has it
        dataset_resampled=False,
        batch_size=1,
        workers=1,
        world_size=1,
        seed=0,
    )
    data = get_wds_dataset(
        arguments,
        lambda image: to_tensor(image.convert("RGB")),
        True,
        tokenizer=lambda text: [text],
    )
    read: list[Sample] = [
        [None, None, captions[0], digest_tensor(images[0])] for images, captions in data.dataloader
    ]
    if data.dataloader.num_samples != len(read):
        raise SystemExit(f"sizes.json: {data.dataloader.num_samples} samples, {len(read)} read")
    return read


def ray_data(folder: Path) -> list[Sample]:
    """ray.data.read_webdataset("OUT", decoder=None)"""
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_webdataset(str(folder), decoder=None).take_all()
    return [from_bytes(row) for row in rows]


def torchdata_pipes(folder: Path) -> list[Sample]:
    """FileLister(["OUT"], "*.tar").open_files("b").load_from_tar().webdataset()"""
    from torchdata.datapipes.iter import FileLister

    samples = FileLister([str(folder)], "*.tar").open_files("b").load_from_tar().webdataset()
    read: list[Sample] = []
    for sample in samples:
        members = {name: sample[f".{name}"].read() for name in ("cls", "txt", "png")}
        read.append(from_bytes({"__key__": Path(sample["__key__"]).name, **members}))
    return read


def torchdata_nodes(folder: Path) -> list[Sample]:
    """torchdata.nodes.Loader(IterableWrapper(webdataset.WebDataset("OUT/{000..002}.tar")))"""
    import webdataset
    from torchdata.nodes import IterableWrapper, Loader

    samples = webdataset.WebDataset(str(folder / "{000..002}.tar"), shardshuffle=False)
    return [from_bytes(sample) for sample in Loader(IterableWrapper(samples))]


def energon_dataset(folder: Path) -> list[Sample]:
    """megatron.energon.get_loader(get_train_dataset("OUT", repeat=False, …))"""
    from megatron.energon import WorkerConfig, get_loader, get_train_dataset

    dataset = get_train_dataset(
        str(folder),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
    )
    return [
        [one.__key__.rpartition("/")[2], str(int(one.label)), None, digest_tensor(one.image)]
        for one in get_loader(dataset)
    ]


def dali_reader(folder: Path) -> list[Sample]:
    """nvidia.dali.fn.readers.webdataset(paths=[…], index_paths=[…]), on the CPU"""
    from nvidia.dali import fn, pipeline_def

    shards = sorted(folder.glob("*.tar"))

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def read_shards() -> Any:
        outputs = fn.readers.webdataset(
            paths=[str(path) for path in shards],
            index_paths=[str(path.with_suffix(".idx")) for path in shards],
            ext=["cls", "txt", "png"],
            name="reader",
        )
        return tuple(outputs)

    pipeline = read_shards()
    pipeline.build()
    read: list[Sample] = []
    for _ in range(pipeline.epoch_size("reader")):
        label, caption, image = (bytes(output.at(0)) for output in pipeline.run())
        read.append([None, label.decode(), caption.decode(), digest(image)])
    return read


def duckdb_tables(folder: Path) -> list[list[Any]]:
    """duckdb.connect("CATALOG/catalog.duckdb", read_only=True), each table and view"""
    import duckdb

    connection = duckdb.connect(str(folder / "catalog.duckdb"), read_only=True)
    names = connection.execute(
        "select table_name from information_schema.tables where table_schema = 'main' order by all"
    ).fetchall()
    read: list[list[Any]] = []
    for (name,) in names:
        rows = connection.execute(f'select * from "{name}"').fetchall()
        texts = sorted(json.dumps(row, default=str) for row in rows)
        read.append([name, len(rows), digest("\n".join(texts).encode())])
    return read


def duckdb_vectors(folder: Path) -> list[list[Any]]:
    """set variable catalog = 'CATALOG/'; from embedding('pixels'), which reads float16"""
    import duckdb

    connection = duckdb.connect(str(folder / "catalog.duckdb"), read_only=True)
    connection.execute(f"set variable catalog = '{folder}/'")
    rows = connection.execute(
        "select vector from embedding('pixels') order by sample_id"
    ).fetchall()
    return [[len(rows), digest_vectors(vector for (vector,) in rows)]]


def pyarrow_vectors(folder: Path) -> list[list[Any]]:
    """pyarrow.parquet.read_table("vectors.parquet")"""
    import pyarrow.parquet

    vectors = pyarrow.parquet.read_table(folder / "vectors.parquet")["vector"].to_pylist()
    return [[len(vectors), digest_vectors(vectors)]]


def polars_vectors(folder: Path) -> list[list[Any]]:
    """polars.read_parquet("vectors.parquet")"""
    import polars

    vectors = polars.read_parquet(folder / "vectors.parquet")["vector"].to_list()
    return [[len(vectors), digest_vectors(vectors)]]


def fastparquet_vectors(folder: Path) -> list[list[Any]]:
    """fastparquet.ParquetFile("vectors.parquet").to_pandas()"""
    import fastparquet

    vectors = list(fastparquet.ParquetFile(str(folder / "vectors.parquet")).to_pandas()["vector"])
    return [[len(vectors), digest_vectors(vectors)]]


READERS: dict[str, Callable[[Path], list[Any]]] = {
    reader.__name__: reader
    for reader in (
        webdataset_shards,
        wids_index,
        datasets_folder,
        datasets_webdataset,
        open_clip_training,
        ray_data,
        torchdata_pipes,
        torchdata_nodes,
        energon_dataset,
        dali_reader,
        duckdb_tables,
        duckdb_vectors,
        pyarrow_vectors,
        polars_vectors,
        fastparquet_vectors,
    )
}


if __name__ == "__main__":
    reader_name, package, folder_name = sys.argv[1:]
    answer = READERS[reader_name](Path(folder_name))
    version = importlib.metadata.version(package)
    print(json.dumps({"version": version, "read": answer}))
