"""`curate embed`: stream shards through an encoder; one Parquet file of vectors a shard, one row a sample."""

import contextlib
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from curate import corpus, encoders, engine, provenance, sets
from curate.atomic import sweep
from curate.catalog import Catalog
from curate.corpus import Job
from curate.database import Busy
from curate.engine import Resources, inference
from curate.engine import profile as profiles
from curate.engine.embedding import EmbedShards
from curate.errors import CurateError
from curate.progress import bar, log
from curate.shards import expand
from curate.storage import is_remote

DEFAULT_ENCODER = "open_clip:ViT-B-32/laion2b_s34b_b79k"
# Workers take neighbouring shards in groups of about so many bytes, so that batches span small shards.
_GROUP_BYTES = 32 << 20


def embed(
    catalog: Catalog | str | Path,
    shards: list[str] | str,
    *,
    encoder: str = DEFAULT_ENCODER,
    checkpoint: str | None = None,
    label: str = "cls",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    decode: str | None = None,
    profile: bool = False,
    files: str | None = None,
    name: str | None = None,
) -> str:
    """Embed every sample of the shards, and return the embedding's name.

    Shards that are in the embedding already are left alone; new ones are added. Samples that cannot
    be read go to `failures`: for every shard, samples = embedded + failed. `label` is `cls` or
    `json:FIELD`. `decode` fast resizes by tensor operators, exact as the model's own transform
    does; the default is what the embedding was begun with, else fast. `profile` says where the time
    went, which the table `runs` keeps in any case. `files` is a URL where a new catalog puts vectors and centroids.
    Raises CurateError if a shard's bytes have changed, or if the name is taken by another encoder.
    """
    check(encoder=encoder, checkpoint=checkpoint, label=label, decode=decode)
    encoder, checkpoint = _absolute(encoder, checkpoint)
    embedding = sets.check_name(name or default_name(encoder))
    urls = expand([shards] if isinstance(shards, str) else shards)
    if not urls:
        raise CurateError("no shards given: name paths, folders, globs, brace ranges or URLs")
    stats = {url: corpus.stat(url) for url in urls}
    catalog = Catalog(catalog).create(files)
    folder = catalog.embedding_folder(embedding)
    with catalog.only_writer(folder, f"the embedding '{embedding}'"):
        sweep(folder)
        _check_same_encoder(catalog, embedding, encoder, checkpoint, label)
        corpus.commit_pending(catalog, embedding)
        todo = corpus.register(catalog, embedding, stats)
        if todo:
            arguments = {"shards": shards, "encoder": encoder, "checkpoint": checkpoint, "label": label,
                         "decode": _decoding(catalog, embedding, decode)}  # fmt: skip
            _embed(catalog, embedding, arguments, todo, batch_size, workers, device, profile)
            sweep(folder)  # a machine that was lost leaves what it was writing, which others have made again
        if not is_remote(folder):
            with contextlib.suppress(OSError):  # it is not there, or not empty
                (folder / "pending").rmdir()
    _summarize(catalog, embedding, len(urls), len(todo))
    return embedding


def check(
    *,
    encoder: str = DEFAULT_ENCODER,
    checkpoint: str | None = None,
    label: str = "cls",
    decode: str | None = None,
    **others: Any,
) -> None:
    """CurateError for an encoder, a file or a label source that cannot be."""
    encoders.check(encoder, checkpoint)
    if decode not in (None, "fast", "exact"):
        raise CurateError(f"--decode {decode}: choose one of fast, exact")
    if label != "cls" and not label.startswith("json:"):
        raise CurateError(f"no label source '{label}'; write cls, or json:FIELD for a field of the .json member")


def _embed(
    catalog: Catalog, embedding: str, arguments: dict[str, Any], todo: list[Job],
    batch_size: int | None, workers: int | None, device: str, profiled: bool,
) -> None:  # fmt: skip
    """Load the encoder, claim the name for it, and embed the shards; one run in the catalog's books."""
    encoder, checkpoint, label = (arguments[name] for name in ("encoder", "checkpoint", "label"))
    device, gpus = engine.current().devices(device)
    resources = _resources(device, gpus, workers)
    old = catalog.head("embedding", embedding)
    with catalog.run("embed", embedding, arguments, made_from=old["run_id"] if old else None, device=device) as run_id:
        made = encoders.make(encoder, checkpoint)
        made = replace(made, preprocessing=replace(made.preprocessing, decode=arguments["decode"]))
        with catalog.exchange(run_id) as folder:
            model = inference.prepare(made, encoder, checkpoint, device, resources.threads, folder / "encoder.onnx")
            _claim_name(catalog, {
                "embedding": embedding, "encoder": encoder, "checkpoint": checkpoint, "weights_sha256": made.weights_sha256,
                "dim": _dim(model), "label_source": label, "run_id": run_id,
                "preprocessing": provenance.canonical(asdict(made.preprocessing)),
            })  # fmt: skip
            size = batch_size or (256 if device == "cuda" else 8)
            # Beside a GPU, threads decode ahead of it; on a CPU the cores are busy with a worker each.
            decoders = resources.threads if device == "cuda" else 0
            task = EmbedShards(model, catalog.embedding_folder(embedding), label, size, decoders)
            _map(catalog, embedding, run_id, task, todo, resources, profiled)


def preprocessing_of(head: dict[str, Any]) -> dict[str, Any]:
    """How an embedding's images were prepared; older catalogs, where all decoding was exact, do not say so."""
    known: dict[str, Any] = json.loads(head["preprocessing"])
    return {"decode": "exact"} | known


def _decoding(catalog: Catalog, embedding: str, wanted: str | None) -> str:
    """fast or exact. Raises CurateError if an embedding was begun with the other one."""
    old = catalog.head("embedding", embedding)
    begun = str(preprocessing_of(old)["decode"]) if old else wanted or "fast"
    if wanted not in (None, begun):
        raise CurateError(f"the embedding '{embedding}' was begun with --decode {begun}: go on so, or choose another --name")
    return begun


def _absolute(encoder: str, checkpoint: str | None) -> tuple[str, str | None]:
    """Files by their full paths, so that the same file is the same encoder from any folder."""
    if encoder.startswith("onnx:"):
        encoder = f"onnx:{Path(encoder.removeprefix('onnx:')).expanduser().absolute()}"
    return encoder, str(Path(checkpoint).expanduser().absolute()) if checkpoint else None


def default_name(encoder: str) -> str:
    """The embedding's name when none is given: the encoder's, with signs that no folder should have replaced."""
    if encoder.startswith("onnx:"):
        return Path(encoder.removeprefix("onnx:")).name
    return encoder.replace(":", "-").replace("/", "-")


def _resources(device: str, gpus: tuple[int, ...], workers: int | None) -> Resources:
    """One worker a GPU, with its share of the cores; on a CPU one a core, whose one thread beat threads inside the encoder."""
    cores, _ = engine.current().cores(device)
    count = workers or len(gpus) or cores
    return Resources(count, max(cores // count, 1), gpus)


def _dim(model: inference.Model) -> int:
    import numpy as np

    side = model.preprocessing.size
    return int(inference.load(model)(np.zeros((1, side, side, 3), np.uint8)).shape[1])


def _check_same_encoder(catalog: Catalog, embedding: str, encoder: str, checkpoint: str | None, label: str) -> None:
    """A quick look before any model is loaded; the weights are compared later."""
    row = catalog.head("embedding", embedding) or {"encoder": encoder, "checkpoint": checkpoint}
    for what, new in (("encoder", encoder), ("checkpoint", checkpoint)):
        if row[what] != new:
            raise CurateError(
                f"the embedding '{embedding}' was made with {what} {row[what]}, not {new}: "
                "choose another --name, or another catalog (-c)"
            )
    with catalog.reading() as connection:
        others = connection.execute(
            "select embedding, label_source from embeddings where label_source <> ?", [label]
        ).fetchall()
    for other, source in others:  # labels belong to the samples, which all embeddings of a catalog share
        raise CurateError(f"the labels of this catalog come from {source} (embedding '{other}'): give --label {source}, "
                          "or another catalog (-c)")  # fmt: skip


def _claim_name(catalog: Catalog, row: dict[str, Any]) -> None:
    """Write the embedding's head row, or compare with the one that is there."""
    with catalog.writing() as connection:
        connection.execute("update runs set fingerprint = ? where run_id = ?", [row["weights_sha256"], row["run_id"]])
        old = sets.head(connection, "embedding", row["embedding"])
        if old is None:
            sets.insert(connection, "embeddings", row)
            return
    for field in ("weights_sha256", "dim", "preprocessing"):
        same = preprocessing_of(old) == preprocessing_of(row) if field == "preprocessing" else old[field] == row[field]
        if not same:
            raise CurateError(
                f"the embedding '{row['embedding']}' was made with other weights or preprocessing ({field} differs): "
                "choose another --name"
            )


def _map(
    catalog: Catalog, embedding: str, run_id: int, task: EmbedShards, todo: list[Job], resources: Resources, profiled: bool
) -> None:  # fmt: skip
    """Run the task on groups of shards, committing what is finished as it comes."""
    groups = _groups(todo, resources.workers)
    written: list[int] = []  # shards that are not in the catalog yet
    unreadable: dict[int, str] = {}
    seconds: dict[str, float] = {}
    with bar("embed", sum(job.num_bytes for job in todo) >> 10) as advance:
        rest_until = 0.0
        for outcome in engine.map(task, groups, resources, advance=advance):
            if outcome.error:
                unreadable |= {job.shard_id: outcome.error for job in outcome.item}
            else:
                problems, spent = outcome.result
                written += [job.shard_id for job in outcome.item if job.shard_id not in problems]
                unreadable |= problems
                profiles.add(seconds, spent)
            if (begin := time.monotonic()) >= rest_until:
                with contextlib.suppress(Busy):  # somebody reads for long: the next commit, or the last, takes it along
                    corpus.commit_pending(catalog, embedding, run_id, written, patience=0)
                    written.clear()
                rest_until = time.monotonic() + 9 * (time.monotonic() - begin)  # a tenth of the time goes to commits at most
    corpus.commit_pending(catalog, embedding, run_id, written)
    corpus.commit_pending(catalog, embedding, run_id)  # and what groups had finished that failed at a later shard
    catalog.record_profile(run_id, seconds)
    log.log(logging.INFO if profiled else logging.DEBUG, "profile: %.1f s of %s workers: %s", sum(seconds.values()),
            resources.workers, profiles.shares(seconds))  # fmt: skip
    corpus.record_unreadable(catalog, embedding, unreadable)


def _groups(todo: list[Job], workers: int) -> list[tuple[Job, ...]]:
    """Neighbouring shards, up to a size that still gives every worker several groups."""
    total = sum(job.num_bytes for job in todo)
    limit = min(_GROUP_BYTES, total // (4 * workers))
    groups: list[list[Job]] = []
    size = limit + 1
    for job in todo:
        if size + job.num_bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(job)
        size += job.num_bytes
    return [tuple(group) for group in groups]


def _summarize(catalog: Catalog, embedding: str, given: int, done: int) -> None:
    with catalog.reading() as connection:
        ((count, embedded, failed),) = connection.execute(
            "select count(*), coalesce(sum(num_embedded), 0), coalesce(sum(num_failed), 0) from embedded_shards "
            "where embedding = ?", [embedding],
        ).fetchall()  # fmt: skip
        damaged = connection.execute(
            "select url, error, (embedding, shard_id) in (select (embedding, shard_id) from embedded_shards) as partly "
            "from failures join shards using (shard_id) where embedding = ? and sample_id is null", [embedding],
        ).fetchall()  # fmt: skip
        ((labelled,),) = connection.execute("select count(label) from samples").fetchall()
        ((source,),) = connection.execute("select label_source from embeddings where embedding = ?", [embedding]).fetchall()
    for url, error, _ in damaged[:10]:
        log.warning("%s: %s", url, error)
    if embedded and not labelled and source != "cls":
        log.warning("no sample has a label in %s: see --label", source)
    lost = sum(not partly for _, _, partly in damaged)
    what = f"nothing to do: all {given} shards are in '{embedding}'" if not done else f"embedding '{embedding}'"
    log.info("%s: %s shards, %s samples embedded, %s failed%s", what, f"{count:,}", f"{embedded:,}", f"{failed:,}",
             f"; {lost:,} shards could not be read" if lost else "")  # fmt: skip


def num_failures(catalog: Catalog | str | Path, embedding: str | None = None) -> int:
    """How many samples and shards of an embedding, or of all, failed; the command's exit status depends on it."""
    with Catalog(catalog).reading() as connection:
        ((count,),) = connection.execute(
            "select count(*) from failures where embedding = coalesce(?, embedding)", [embedding]
        ).fetchall()
    return int(count)
