"""Exports, catalogs and Parquet files, read by the programs that people feed them to.

`make clients` prints the table of docs/clients.md. Each client is installed into an environment of
its own under .peers/clients, in front of that of `make test`, and is not run where it cannot be.
"""

import io
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import client_readers
import numpy as np
from client_readers import digest, digest_pixels
from PIL import Image

ENVIRONMENTS = Path(__file__).parents[1] / ".peers" / "clients"
NUM_SHARDS, PER_SHARD = 3, 40
_PLAIN, _CATALOG, _PARQUET = "plain", "catalog", "parquet"  # folders that clients read
_READ_LIMIT = 600  # seconds
_TABLES = "duckdb_tables"  # what this environment's DuckDB reads is the answer


class Client(NamedTuple):
    """A reader, the folder that it reads, and the packages that pip installs for it.

    `alone` installs nothing that they depend on, which the environment of `make test` has; `based`
    finds the packages of that environment.
    """

    reader: str
    folder: str
    packages: tuple[str, ...] = ()
    package: str = ""  # whose version is shown; else the first one
    alone: bool = True
    based: bool = True

    @property
    def name(self) -> str:
        """The package whose version is shown."""
        return self.package or self.packages[0].partition("==")[0]

    @property
    def environment(self) -> Path:
        """Its environment: one for each list of packages."""
        words = "-".join(self.packages) or "none"
        return ENVIRONMENTS / "".join(sign if sign.isalnum() else "-" for sign in words)


CLIENTS = [
    Client("webdataset_shards", _PLAIN, ("webdataset==1.0.2",)),
    Client("webdataset_shards", _PLAIN, ("webdataset==0.2.86",)),
    Client("wids_index", "wids", ("wids==0.1.11",)),
    Client("wids_index", "wids", ("webdataset==0.2.86",)),
    Client("datasets_folder", _PLAIN, ("datasets",), alone=False),
    Client("datasets_webdataset", _PLAIN, ("datasets",), alone=False),
    Client("open_clip_training", "open_clip", ("webdataset==0.2.86",), "open_clip_torch"),
    Client("open_clip_training", "open_clip", ("webdataset==1.0.2",), "open_clip_torch"),
    Client("ray_data", _PLAIN, package="ray"),
    Client("torchdata_pipes", _PLAIN, ("torchdata==0.9.0",)),
    Client("torchdata_nodes", _PLAIN, ("torchdata==0.11.0",)),
    Client("energon_dataset", "energon", ("megatron-energon==7.4.1",), alone=False),
    Client("dali_reader", "dali", ("nvidia-dali-cuda120==1.53.0",), alone=False, based=False),
    *(
        Client(reader, _CATALOG, (f"duckdb=={version}",))
        for reader in (_TABLES, "duckdb_vectors")
        for version in ("1.2.2", "1.4.1", "1.5.0")
    ),
    Client("pyarrow_vectors", _PARQUET, ("pyarrow==14.0.2", "numpy==1.26.4")),
    Client("polars_vectors", _PARQUET, ("polars==0.20.31",)),
    Client("fastparquet_vectors", _PARQUET, ("fastparquet==2024.11.0", "cramjam")),
]


def main(part_of_name: str = "") -> None:
    """Print the table of all clients, or of some; a row as soon as a client has read."""
    with tempfile.TemporaryDirectory(prefix="curate-clients-") as name:
        folder = Path(name)
        selected = write_world(folder)
        print("| client | version | command | read | equal |\n|---|---|---|---|---|")
        not_run: list[str] = []
        for client in CLIENTS:
            if part_of_name not in client.name:
                continue
            command = (client_readers.READERS[client.reader].__doc__ or "").replace("|", r"\|")
            answer = try_client(client, folder)
            if isinstance(answer, str):
                words = ", ".join(dict.fromkeys((client.name, *client.packages)))
                not_run.append(f"- {words}: `{command}`: {answer}")
                continue
            count, is_equal = compare(client, answer["read"], folder, selected)
            verdict = "yes" if is_equal else "**no**"
            row = f"| {client.name} | {answer['version']} | `{command}` | {count} | {verdict} |"
            print(row, flush=True)
        if not_run:
            print("\nDid not read, or could not be installed here:\n", *not_run, sep="\n")


def write_world(folder: Path) -> list[list[str]]:
    """A corpus, its catalog, half of it exported for each client, and its vectors in Parquet.

    Returns the samples that were selected: key, label, caption, digests of bytes and pixels.
    """
    samples = write_corpus(folder / "corpus")
    catalog = folder / _CATALOG
    curate(catalog, "embed", folder / "corpus", "--encoder", "pixels")
    curate(catalog, "score", "random")
    curate(catalog, "select", "--keep", "0.5", "--scoring", "random", "--name", "half")
    curate(catalog, "export", "half", folder / _PLAIN)
    for client in ("open_clip", "wids", "energon", "dali"):
        curate(catalog, "export", "half", folder / client, "--for", client)
    (folder / _PARQUET).mkdir()
    sql = "select sample_id, vector from embedding('pixels') order by sample_id"
    curate(catalog, "query", sql, "--out", folder / _PARQUET / "vectors.parquet")
    curate(catalog, "export", "half", folder / "keys.txt", "--format", "keys")
    selected = set((folder / "keys.txt").read_text().split())
    return [sample for sample in samples if sample[0] in selected]


def write_corpus(folder: Path) -> list[list[str]]:
    """Tars by the standard library; keys are unique, labels and captions differ."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    samples: list[list[str]] = []
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for position in range(PER_SHARD):
                pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                image, file = Image.fromarray(pixels), io.BytesIO()
                image.save(file, format="PNG")
                key, label = f"{shard:03d}{position:04d}", str(position % 7)
                caption = f"picture {position} of shard {shard}"
                samples.append([key, label, caption, digest(file.getvalue()), digest_pixels(image)])
                contents = {"png": file.getvalue(), "cls": label.encode(), "txt": caption.encode()}
                for extension, content in contents.items():
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return samples


def curate(catalog: Path, *words: object) -> None:
    """Run a command line."""
    _run([sys.executable, "-m", "curate", str(words[0]), "-c", str(catalog), *map(str, words[1:])])


def try_client(client: Client, folder: Path) -> dict[str, Any] | str:
    """What a client has read; where it could not be installed or run, why."""
    python = sys.executable
    if client.packages:
        try:
            python = str(make_environment(client))
        except subprocess.CalledProcessError as error:
            return f"pip: {_last_line(error.stderr)}"
    # A copy, because some clients write beside what they read.
    copy = Path(shutil.copytree(folder / client.folder, folder / "copy"))
    try:
        finished = subprocess.run(  # noqa: S603 - our own reader
            [python, client_readers.__file__, client.reader, client.name, str(copy)],
            capture_output=True,
            text=True,
            timeout=_READ_LIMIT,
            env=_environment_of_readers(folder),
        )
    except subprocess.TimeoutExpired:
        return f"nothing after {_READ_LIMIT} s"
    finally:
        shutil.rmtree(copy)
    if finished.returncode:
        return f"`{_last_line(finished.stderr)}`"
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def _environment_of_readers(folder: Path) -> dict[str, str]:
    """No GPU, one thread, no hub; caches go with the folder."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }


def make_environment(client: Client) -> Path:
    """The interpreter of an environment with the client's packages, before those that are here.

    What is here already, torch above all, is found by a path file and not installed again.
    """
    python = client.environment / "bin" / "python"
    ready = client.environment / ".ready"
    if ready.exists():
        return python
    shutil.rmtree(client.environment, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(client.environment)])
    if client.based:
        packages = sysconfig.get_path("purelib", vars={"base": str(client.environment)})
        Path(packages, "zz_base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--no-deps"] if client.alone else []
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    _run([*pip, *options, *client.packages])
    ready.touch()
    return python


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no message"])[-1][:200]


def compare(
    client: Client, read: list[Any], folder: Path, selected: list[list[str]]
) -> tuple[str, bool]:
    """How much was read, in words, and whether it is what is in the files."""
    if client.folder == _CATALOG and client.reader == _TABLES:
        expected = client_readers.duckdb_tables(folder / _CATALOG)
        num_rows = sum(count for _, count, _ in read)
        return f"{len(read)} tables and views, {num_rows} rows", read == expected
    if client.folder in (_CATALOG, _PARQUET):
        expected = client_readers.duckdb_vectors(folder / _CATALOG)
        return f"{read[0][0]} vectors", read == expected
    has_part = [any(one[part] is not None for one in read) for part in range(4)]
    as_bytes, as_pixels = (
        [_parts([*sample[:3], sample[image]], has_part) for sample in selected] for image in (3, 4)
    )
    ordered = _sorted(read)
    return f"{len(read)} samples", ordered in (_sorted(as_bytes), _sorted(as_pixels))


def _parts(sample: list[str], has_part: list[bool]) -> list[str | None]:
    """A sample without what a client does not give of any."""
    return [value if is_given else None for value, is_given in zip(sample, has_part, strict=True)]


def _sorted(samples: list[Any]) -> list[str]:
    return sorted(json.dumps(sample) for sample in samples)


if __name__ == "__main__":
    main(*sys.argv[1:2])
