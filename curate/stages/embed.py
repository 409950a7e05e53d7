"""`curate embed`: stream shards through an encoder; one Parquet file of vectors a shard, one row a sample."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from curate import corpus, encoders, engine, provenance
from curate.atomic import sweep
from curate.catalog import Catalog, check_name, head, insert
from curate.corpus import Job
from curate.engine import Resources, inference
from curate.engine.embedding import EmbedShards
from curate.errors import CurateError
from curate.progress import bar, log
from curate.shards import expand

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
    name: str | None = None,
) -> str:
    """Embed every sample of the shards, and return the embedding's name.

    Shards that are in the embedding already are left alone; new ones are added. Samples that cannot
    be read go to `failures`: for every shard, samples = embedded + failed. `label` is `cls` or
    `json:FIELD`. Raises CurateError if a shard's bytes have changed, or if the name is taken by
    another encoder.
    """
    if label != "cls" and not label.startswith("json:"):
        raise CurateError(f"no label source '{label}'; write cls, or json:FIELD for a field of the .json member")
    embedding = check_name(name or default_name(encoder))
    checkpoint = str(Path(checkpoint).expanduser().absolute()) if checkpoint else None
    urls = expand([shards] if isinstance(shards, str) else shards)
    if not urls:
        raise CurateError("no shards given: name paths, folders, globs, brace ranges or URLs")
    catalog = Catalog(catalog).create()
    folder = catalog.embedding_folder(embedding)
    with catalog.only_writer(folder, f"the embedding '{embedding}'"):
        sweep(folder)
        _check_same_encoder(catalog, embedding, encoder, checkpoint, label)
        corpus.commit_pending(catalog, embedding)
        todo = corpus.register(catalog, embedding, urls)
        if todo:
            device, gpus = inference.devices(device)
            resources = _resources(device, gpus, workers)
            arguments = {"shards": shards, "encoder": encoder, "checkpoint": checkpoint, "label": label,
                         "name": embedding, "batch_size": batch_size, "workers": resources.workers}  # fmt: skip
            with catalog.run("embed", arguments, device) as run_id:
                made = encoders.make(encoder, checkpoint)
                threads = engine.cores() if resources.workers == 1 else resources.threads
                onnx = folder / ".tmp-encoder.onnx"
                try:
                    model = inference.prepare(made, encoder, checkpoint, device, threads, onnx)
                    row = {"embedding": embedding, "encoder": encoder, "checkpoint": checkpoint,
                           "weights_sha256": made.weights_sha256, "dim": _dim(model), "label_source": label,
                           "preprocessing": provenance.canonical(asdict(made.preprocessing)), "run_id": run_id}  # fmt: skip
                    _claim_name(catalog, row)
                    size = batch_size or (256 if device == "cuda" else 8)
                    # Beside a GPU, threads decode ahead of it; on a CPU the cores are busy with a worker each.
                    decoders = max(engine.cores() // max(len(gpus), 1), 1) if device == "cuda" else 0
                    task = EmbedShards(model, str(folder), label, size, decoders)
                    _map(catalog, embedding, task, todo, resources)
                finally:
                    onnx.unlink(missing_ok=True)
    _summarize(catalog, embedding, len(urls), len(todo))
    return embedding


def default_name(encoder: str) -> str:
    """The embedding's name when none is given: the encoder's, with signs that no folder should have replaced."""
    return encoder.rsplit("/", 1)[-1].rsplit("\\", 1)[-1] if encoder.startswith("onnx:") else encoder.replace(
        ":", "-").replace("/", "-")  # fmt: skip


def _resources(device: str, gpus: tuple[int, ...], workers: int | None) -> Resources:
    """One worker a GPU; on a CPU one a core, each with one thread, which beat threads inside the encoder."""
    if device == "cuda":
        return Resources(workers or len(gpus), 1, gpus)
    count = workers or engine.cores()
    return Resources(count, max(engine.cores() // count, 1))


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
        old = head(connection, "embedding", row["embedding"])
        if old is None:
            insert(connection, "embeddings", row)
            return
    for field in ("weights_sha256", "dim", "preprocessing"):
        if old[field] != row[field]:
            raise CurateError(
                f"the embedding '{row['embedding']}' was made with other weights or preprocessing ({field} differs): "
                "choose another --name"
            )


def _map(catalog: Catalog, embedding: str, task: EmbedShards, todo: list[Job], resources: Resources) -> None:
    """Run the task on groups of shards, committing what is finished as it comes."""
    groups = _groups(todo, resources.workers)
    with bar("embed", sum(job.num_bytes for job in todo) >> 10) as advance:
        for outcome in engine.map(task, groups, resources, advance=advance):
            corpus.commit_pending(catalog, embedding)
            problems = outcome.result or {}
            if outcome.error:
                problems = {job.shard_id: outcome.error for job in outcome.item}
            corpus.record_unreadable(catalog, embedding, problems)


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
        row = connection.execute(
            "select count(*), coalesce(sum(num_embedded), 0), coalesce(sum(num_failed), 0) from embedded_shards "
            "where embedding = ?", [embedding],
        ).fetchone()  # fmt: skip
        unreadable = connection.execute(
            "select url, error from failures join shards using (shard_id) where embedding = ? and sample_id is null",
            [embedding],
        ).fetchall()
    count, embedded, failed = row or (0, 0, 0)
    for url, error in unreadable[:10]:
        log.warning("%s: %s", url, error)
    nothing = f"nothing to do: all {given} shards are in '{embedding}'" if not done else f"embedding '{embedding}'"
    log.info("%s: %s shards, %s samples embedded, %s failed", nothing, f"{count:,}", f"{embedded:,}", f"{failed:,}")


def num_failures(catalog: Catalog | str | Path, embedding: str) -> int:
    """How many samples and shards of an embedding failed; the command's exit status depends on it."""
    with Catalog(catalog).reading() as connection:
        row = connection.execute("select count(*) from failures where embedding = ?", [embedding]).fetchone()
    return int(row[0]) if row else 0
