"""`curate plan`: what a corpus will take, stage by stage, before anything runs: from a short measured sample."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from curate import corpus, encoders, engine
from curate.catalog import Catalog
from curate.engine import inference, kmeans, rates
from curate.errors import CurateError
from curate.progress import log
from curate.shards import expand
from curate.stages.cluster import auto_k, default_sample
from curate.stages.embed import DEFAULT_ENCODER
from curate.stages.lloyd import group_size
from curate.units import size

_ITERATIONS, _PASSES = 12, 2  # the defaults of `curate cluster`
_OF_SAMPLE = 0.5  # that an iteration of the fit sees, on average: it begins with an eighth, and doubles
_ROW = {"samples": 60, "assignments": 24, "scores": 24, "members": 8}  # bytes in the database, without captions
_CANDIDATE = 40  # bytes of memory, in `curate select`
_PROCESS = 300 << 20  # bytes of memory that any of our processes has


class Measured(NamedTuple):
    """A corpus: its samples, bytes and shards, the dimension of its vectors, and the seconds an image takes one worker."""

    samples: int
    num_bytes: int
    shards: int
    dim: int
    image: float


def plan(
    catalog: Catalog | str | Path,
    shards: list[str] | str | None = None,
    *,
    samples: int | None = None,
    encoder: str = DEFAULT_ENCODER,
    checkpoint: str | None = None,
    k: int | str = "auto",
    keep: float = 0.8,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """What embed, cluster, score, select and export will take on the engine in use, a row a stage: samples, seconds, and
    bytes of memory (of the largest process) and of disk.

    Of the corpus that the catalog has, or of `shards` by an encoder; `samples` asks for as many of the same kind. The
    seconds suppose that other machines are as fast as this one. The plan goes into `runs`, and `curate query plans` shows
    what came of it. Raises CurateError.
    """
    encoders.check(encoder, checkpoint)
    if not 0 < keep <= 1:
        raise CurateError(f"--keep {keep:g}: give a fraction above 0 and up to 1, such as 0.8")
    if k != "auto" and int(k) < 1:
        raise CurateError(f"--k {k}: give auto, or a number from 1")
    urls = expand([shards] if isinstance(shards, str) else shards) if shards else []
    num_bytes = sum(corpus.stat(url).num_bytes for url in urls)
    catalog = Catalog(catalog).create() if urls else Catalog(catalog)
    with catalog.workspace() as folder:
        found = _of_shards(urls, num_bytes, encoder, checkpoint, folder) if urls else _of_catalog(catalog, folder)
        if samples:
            found = found._replace(samples=samples, num_bytes=round(found.num_bytes / found.samples * samples),
                                   shards=math.ceil(found.shards / found.samples * samples))  # fmt: skip
        clusters = auto_k(found.samples) if k == "auto" else min(int(k), found.samples)
        cores = workers or engine.current().cores()[0]
        rows = _rows(found, clusters, keep, cores, folder)
    log.info("%s samples, %s in %s shards; vectors of %s numbers, %s clusters; %s cores", f"{found.samples:,}",
             size(found.num_bytes), f"{found.shards:,}", f"{found.dim:,}", f"{clusters:,}", cores)  # fmt: skip
    arguments = {"samples": found.samples, "k": clusters, "keep": keep, "cores": cores, "stages": rows}
    with catalog.run("plan", "plan", arguments):
        pass
    return rows


def _of_shards(urls: list[str], num_bytes: int, encoder: str, checkpoint: str | None, folder: Path) -> Measured:
    """By the size of all shards, and the first samples of some."""
    found = rates.sample(urls)
    made = encoders.make(encoder, checkpoint)
    device, _ = inference.devices("auto")
    model = inference.prepare(made, encoder, checkpoint, device, 1, folder / "encoder.onnx")
    seconds, dim = rates.embedding(model, found)
    return Measured(max(round(num_bytes / found.num_bytes), 1), num_bytes, len(urls), dim, seconds)


def _of_catalog(catalog: Catalog, folder: Path) -> Measured:
    """By its tables; the speed of its encoder is measured on its shards."""
    with catalog.reading() as connection:
        ((samples, num_bytes),) = connection.execute("select count(*), sum(num_bytes)::bigint from samples").fetchall()
        rows = connection.execute("select url, num_bytes from shards where num_samples > 0 order by shard_id").fetchall()
        head = connection.execute("select encoder, checkpoint from embeddings order by run_id").fetchone()
    if not samples or not head:
        raise CurateError("the catalog has no samples: name the shards that are to be embedded")
    encoder, checkpoint = head
    urls = dict(rows)
    measured = _of_shards(list(urls), sum(urls.values()), encoder, checkpoint, folder)
    return measured._replace(samples=samples, num_bytes=num_bytes)


def _rows(found: Measured, k: int, keep: float, cores: int, folder: Path) -> list[dict[str, Any]]:
    n, dim = found.samples, found.dim
    assign, read, commit = rates.assigning(dim, k), rates.reading(dim, folder), rates.committing(folder)
    write, here = rates.copying(folder), engine.cores()  # the products of a matrix use all cores of this machine
    fitted = min(default_sample(k), n)
    a_shard = math.ceil(n / found.shards)
    fit, passes = kmeans.memory(fitted, a_shard, dim, k, math.ceil(n / group_size(n)))
    over_rows = n * (assign * here + read) / cores
    return [
        {"stage": stage, "samples": count, "seconds": seconds, "memory": _PROCESS + memory, "disk": disk}
        for stage, count, seconds, memory, disk in (
            ("embed", n, n * (found.image / cores + commit), 14 * dim * a_shard, n * (2 * dim + 8 + _ROW["samples"])),
            ("cluster", n, fitted * _ITERATIONS * _OF_SAMPLE * assign + (_PASSES + 1) * over_rows + n * commit,
             max(fit, passes), n * _ROW["assignments"] + 4 * k * dim),
            ("score", n, over_rows + n * commit, 14 * dim * a_shard + 4 * k * dim, n * _ROW["scores"]),
            ("select", n, n * (rates.choosing() + keep * commit), n * _CANDIDATE, round(keep * n) * _ROW["members"]),
            ("export", round(keep * n), keep * found.num_bytes * write, 1 << 28, round(keep * found.num_bytes)),
        )
    ]  # fmt: skip
