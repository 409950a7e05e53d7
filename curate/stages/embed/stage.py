"""`curate embed`: stream shards through an encoder; one Parquet file of vectors per shard.

With --captions, one more file per shard has the vectors of the captions.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.database import CatalogLockedError
from curate.catalog.records import EmbeddingRecord
from curate.catalog.samples import corpus_roles, find_alike_labels, roles_to_preprocessing
from curate.encoders import (
    check_checkpoint,
    check_spec,
    check_text_tower,
    make_encoder,
    make_text_tower,
)
from curate.encoders.hub import LOCAL_FOLDER
from curate.errors import CurateError, OptionError
from curate.execution import engine
from curate.execution.limits import cpu_count
from curate.execution.timing import add_seconds, format_shares
from curate.execution.types import Resources
from curate.formats.json_fields import parse_fields
from curate.formats.member_roles import JSON_LABEL, MemberRoles
from curate.formats.samples import KEY_RULES
from curate.formats.shard_patterns import expand_patterns
from curate.formats.tombstones import Tombstones
from curate.formatting import count_of, file_safe
from curate.options import Device, Option, SetName, WorkersPerCore, verb
from curate.progress import announce, log, progress_bar
from curate.stages.embed.columns import (
    add_missing_fields,
    check_number_of_fields,
    log_columns,
    requested_fields,
)
from curate.stages.embed.commit import commit_pending, record_unreadable
from curate.stages.embed.device import load_device, measure_dim
from curate.stages.embed.feeding import FeedDevice, close_feeder
from curate.stages.embed.inference import (
    EncoderPlan,
    check_runs_on_gpus,
    free_device_memory,
    load_forward,
    plan_encoder,
)
from curate.stages.embed.kept_encoders import copy_kept, keep_encoder, load_kept
from curate.stages.embed.member_counts import MemberCounts
from curate.stages.embed.pending import list_fields_files, pending_folder
from curate.stages.embed.registration import (
    find_copies,
    list_read_shards,
    register_shards,
    stat_shards,
)
from curate.stages.embed.worker import EmbedShards, ShardTask
from curate.stages.staleness import encoder_checksum, warn_if_stale
from curate.storage import files as storage
from curate.storage.credentials import hide_credentials
from curate.storage.files import FileStat
from curate.storage.locks import remove_temporary_files

_EXTENSION = re.compile(r"[^./:\s]+(\.[^./:\s]+)*")
# Workers take neighbouring shards in groups of about this size, so that batches span small shards.
_GROUP_BYTES = 32 << 20
# For a GPU and its decoders, which have nothing to do between two groups.
_GPU_GROUP_BYTES = 8 << 30
_CPU_BATCH, _CUDA_BATCH = 8, 256
_MAX_DAMAGED_SHOWN, _MAX_ALIKE_SHOWN = 10, 3


def check_label_source(label: str) -> None:
    """OptionError for what is neither an extension nor json:FIELD."""
    if label.startswith(JSON_LABEL) and label != JSON_LABEL:
        return
    if label == "json" or not _EXTENSION.fullmatch(label):
        raise OptionError(
            f"no label source '{label}'; write cls or another extension, such as target.cls, "
            "or json:FIELD for a field of the .json member"
        )


def check_extension(extension: str) -> None:
    """OptionError for what is no extension of a member, as jpg or input.jpg."""
    if not _EXTENSION.fullmatch(extension):
        raise OptionError(
            f"'{extension}' is no extension: write what follows the key, such as jpg or input.jpg"
        )


def _check_captions(arguments: Mapping[str, Any]) -> None:
    """OptionError for --captions with an encoder that has no text tower."""
    if arguments["captions"]:
        check_text_tower(arguments["encoder"])


Shards = Annotated[
    list[str] | str,
    Option("Paths, folders, globs, brace ranges, or URLs (s3://, gs://, https://, hf://)."),
]
EncoderSpec = Annotated[
    str,
    Option(
        "NAME, NAME:VARIANT or NAME:VARIANT@SIZE; see `curate list encoders`.", check=check_spec
    ),
]
Checkpoint = Annotated[
    str | Path | None, Option("Weights from a file.", metavar="FILE", check=check_checkpoint)
]
JsonColumns = Annotated[
    list[str] | str | None,
    Option(
        "Fields of .json members to keep as columns, by path; repeatable.",
        metavar="all|NAME,…",
        default="those kept so far",
    ),
]
DEFAULT_ENCODER = "open_clip:ViT-B-32/laion2b_s34b_b79k"


@verb(check=_check_captions)
def embed(
    catalog: Catalog | str | Path,
    shards: Shards,
    *,
    encoder: EncoderSpec = DEFAULT_ENCODER,
    checkpoint: Checkpoint = None,
    label: Annotated[
        str,
        Option(
            "Where labels come from: cls or the extension of another member, or json:FIELD.",
            check=check_label_source,
        ),
    ] = "cls",
    image: Annotated[
        str | None,
        Option(
            "The extension of the image's member, such as input.jpg.",
            metavar="EXT",
            default="jpg, png and the like",
            check=check_extension,
        ),
    ] = None,
    caption: Annotated[
        str | None,
        Option(
            "The extension of the caption's member.",
            metavar="EXT",
            default="txt",
            check=check_extension,
        ),
    ] = None,
    key: Annotated[
        str | None,
        Option(
            "Where the key ends in a member's name: at the first dot, as in webdataset, or at the "
            "last, for keys with dots in them.",
            choices=KEY_RULES,
            default="first-dot, or as the corpus was begun",
        ),
    ] = None,
    allow_missing: Annotated[
        bool, Option("Go on without shards that are missing, and name them.")
    ] = False,
    captions: Annotated[
        bool, Option("Embed the captions (.txt) too, by the encoder's own text tower.")
    ] = False,
    skip_duplicates: Annotated[
        bool, Option("Leave out new shards that are byte for byte copies of others.")
    ] = False,
    columns: JsonColumns = None,
    batch_size: Annotated[
        int | None, Option("Images per batch.", minimum=1, default="8 on a CPU, 256 on a GPU")
    ] = None,
    workers: WorkersPerCore = None,
    device: Device = "auto",
    decode: Annotated[
        str | None,
        Option(
            "How images are resized: fast by tensor operators, or exact as the model's own "
            "transform does.",
            choices=("fast", "exact"),
            default="fast, or as the embedding was begun",
        ),
    ] = None,
    compile_network: Annotated[
        bool,
        Option(
            "On a GPU, compile the network by torch.compile: a minute at the start, then faster.",
            flag="--compile",
        ),
    ] = False,
    profile: Annotated[
        bool, Option("Print how the time divides into reading, decoding, encoding and writing.")
    ] = False,
    files: Annotated[
        str | None, Option("Where a new catalog stores vectors and centroids.", metavar="URL")
    ] = None,
    name: SetName = None,
) -> str:
    """Embed every sample of the shards, and return the embedding's name.

    Shards that are in the embedding already are left alone; new ones are added. Samples that cannot
    be read go to `failures`: for every shard, samples = embedded + failed. An embedding that was
    begun with `captions` continues with them. Fields of .json members that are asked for by
    `columns` become columns of `sample_scores`; of shards that are embedded already, only the .json
    members are read. Raises CurateError if a shard's bytes have changed, or if an embedding of that
    name has another encoder, or was begun without `captions`.
    """
    encoder, checkpoint = _absolute_files(encoder, checkpoint)
    embedding = sets.check_name(name or default_name(encoder))
    patterns = [shards] if isinstance(shards, str) else shards
    urls = expand_patterns(patterns, allow_missing=allow_missing)
    if not urls:
        raise OptionError("no shards given: name paths, folders, globs, brace ranges or URLs")
    stats = stat_shards(urls, allow_missing=allow_missing)
    if columns is not None:
        check_number_of_fields(urls[0], parse_fields(columns))
    catalog = Catalog(catalog).create(files)
    if skip_duplicates:
        stats = _without_copies(catalog, stats)
    folder = catalog.embedding_folder(embedding)
    roles = choose_roles(catalog, label, key, image, caption)
    settings = EmbedSettings(embedding, encoder, checkpoint, roles, decode or "fast", captions)
    with catalog.write_lock(folder, f"the embedding '{embedding}'"):
        _remove_temporary_files(folder)
        _check_same_encoder(catalog, settings)
        settings = settings._replace(captions=_with_captions(catalog, embedding, captions))
        fields = requested_fields(catalog, columns)
        commit_pending(catalog, embedding, fields=fields)
        shard_tasks = register_shards(catalog, embedding, stats)
        if shard_tasks:
            settings = settings._replace(decode=_decoding(catalog, embedding, decode))
            resources = _plan_resources(device, workers, encoder)
            if compile_network and not resources.gpus:
                log.info("--compile: nothing is compiled, because no GPU is used")
            _embed(
                catalog,
                settings,
                patterns,
                shard_tasks,
                batch_size or (_CUDA_BATCH if resources.gpus else _CPU_BATCH),
                resources,
                fields=fields,
                compile_network=compile_network,
                profile=profile,
            )
            _warn_of_copies(catalog, [shard.shard_id for shard in shard_tasks])
            # A lost machine leaves temporary files; others have embedded its shards since.
            _remove_temporary_files(folder)
        if fields is not None:
            shards_in_catalog = list_read_shards(catalog, stats)
            add_missing_fields(
                catalog, embedding, shards_in_catalog, roles, fields, workers or cpu_count()
            )
            log_columns(catalog, fields)
        # Of shards whose pending files were never written.
        storage.delete_files(list_fields_files(folder))
        if not storage.is_url(folder):
            with contextlib.suppress(OSError):  # it does not exist, or is not empty
                os.rmdir(pending_folder(folder))
    _log_summary(catalog, embedding, len(stats), len(shard_tasks))
    return embedding


def _without_copies(catalog: Catalog, stats: dict[str, FileStat]) -> dict[str, FileStat]:
    copies = find_copies(catalog, stats)
    for copy, original in copies.items():
        log.info("left out %s: a copy of %s", copy, original)
    return {url: stat for url, stat in stats.items() if url not in copies}


class EmbedSettings(NamedTuple):
    """What an embedding is made with."""

    embedding: str
    encoder: str
    checkpoint: str | None
    roles: MemberRoles
    decode: str
    captions: bool


def default_name(encoder: str) -> str:
    """The embedding's name when none is given: the encoder's, as a file name."""
    if encoder.startswith("onnx:"):
        return Path(encoder.removeprefix("onnx:")).name
    library, is_folder, folder = encoder.partition(f":{LOCAL_FOLDER}")
    if is_folder:
        return file_safe(f"{library}-{Path(folder).name}")
    return file_safe(encoder)


def preprocessing_of(record: EmbeddingRecord) -> dict[str, Any]:
    """How an embedding's images were prepared, and whether it has captions.

    Older catalogs, where all decoding was exact, captions were not embedded, and images became RGB
    before they were resized, do not say so.
    """
    stored: dict[str, Any] = json.loads(record.preprocessing)
    return {"decode": "exact", "captions": False, "convert": "before"} | stored


def num_failures(catalog: Catalog | str | Path, embedding: str | None = None) -> int:
    """How many samples and shards of an embedding, or of all, failed."""
    with Catalog(catalog).reading() as connection:
        ((count,),) = connection.execute(
            "select count(*) from failures where embedding = coalesce(?, embedding)", [embedding]
        ).fetchall()
    return int(count)


def _absolute_files(encoder: str, checkpoint: str | Path | None) -> tuple[str, str | None]:
    """Files by their absolute paths, so that the same file is the same encoder from any folder."""
    if encoder.startswith("onnx:"):
        path = Path(encoder.removeprefix("onnx:")).expanduser().absolute()
        encoder = f"onnx:{path}"
    library, is_folder, folder = encoder.partition(f":{LOCAL_FOLDER}")
    if is_folder:
        encoder = f"{library}:{LOCAL_FOLDER}{Path(folder).expanduser().absolute()}"
    return encoder, str(Path(checkpoint).expanduser().absolute()) if checkpoint else None


def _remove_temporary_files(folder: str) -> None:
    if not storage.is_url(folder):  # an object store has none
        remove_temporary_files(Path(folder))


def _check_same_encoder(catalog: Catalog, settings: EmbedSettings) -> None:
    """A quick comparison before any model is loaded; the weights are compared later."""
    record = catalog.find(EmbeddingRecord, settings.embedding)
    if record is not None:
        for name in ("encoder", "checkpoint"):
            stored_value, value = getattr(record, name), getattr(settings, name)
            if stored_value != value:
                raise CurateError(
                    f"the embedding '{settings.embedding}' was made with {name} {stored_value}, "
                    f"not {value}: choose another --name, or another catalog (-c)"
                )


def choose_roles(
    catalog: Catalog,
    label: str,
    key: str | None = None,
    image: str | None = None,
    caption: str | None = None,
) -> MemberRoles:
    """Which members are read: as all embeddings of the catalog, which share the samples.

    Raises CurateError for an option that differs.
    """
    options = {
        "key_rule": key,
        "image": image.lower() if image else None,
        "caption": caption.lower() if caption else None,
    }
    label = label if label.startswith(JSON_LABEL) else label.lower()
    stored = corpus_roles(catalog) if catalog.database_path.exists() else None
    if stored is None:
        return MemberRoles(label, **{name: value for name, value in options.items() if value})
    if label != stored.label:
        embedding = catalog.list_names(EmbeddingRecord)[0]
        raise CurateError(
            f"the labels of this catalog come from {stored.label} (embedding '{embedding}'): "
            f"give --label {stored.label}, or another catalog (-c)"
        )
    flags = {"key_rule": "--key", "image": "--image", "caption": "--caption"}
    for name, value in options.items():
        if value not in (None, getattr(stored, name)):
            begun_with = getattr(stored, name) or "the usual"
            raise CurateError(
                f"the samples of this catalog were read with {flags[name]} {begun_with}, "
                f"not {value}: continue so, or choose another catalog (-c)"
            )
    return stored


def _decoding(catalog: Catalog, embedding: str, decode: str | None) -> str:
    """fast or exact. Raises CurateError if the embedding was begun with the other one."""
    record = catalog.find(EmbeddingRecord, embedding)
    begun_with = str(preprocessing_of(record)["decode"]) if record else decode or "fast"
    if decode not in (None, begun_with):
        raise CurateError(
            f"the embedding '{embedding}' was begun with --decode {begun_with}: "
            "continue so, or choose another --name"
        )
    return begun_with


def _with_captions(catalog: Catalog, embedding: str, captions: bool) -> bool:
    """Whether captions are embedded. Raises CurateError if the embedding was begun without."""
    record = catalog.find(EmbeddingRecord, embedding)
    begun_with = bool(preprocessing_of(record)["captions"]) if record else captions
    if captions and not begun_with:
        raise CurateError(
            f"the embedding '{embedding}' was begun without --captions: "
            "give the one with captions another --name"
        )
    return begun_with


def _embed(
    catalog: Catalog,
    settings: EmbedSettings,
    patterns: list[str],
    shard_tasks: list[ShardTask],
    batch_size: int,
    resources: Resources,
    *,
    fields: str | list[str] | None,
    compile_network: bool,
    profile: bool,
) -> None:
    """Load the encoder, create the embedding or compare with it, and embed the shards, as one run.

    `patterns` is what the user gave, for the record of the run.
    """
    embedding, spec, checkpoint, roles, decode, captions = settings
    previous = catalog.find(EmbeddingRecord, embedding)
    arguments = {
        "shards": list(map(hide_credentials, patterns)),
        "encoder": spec,
        "checkpoint": checkpoint,
        "label": roles.label,
        "decode": decode,
        "captions": captions,
        **roles_to_preprocessing(roles),
        "columns": fields,
    }
    if previous:
        warn_if_stale(catalog, previous)
    with (
        catalog.record_run(
            "embed",
            embedding,
            arguments,
            parents=[previous.run_id] if previous else [],
            code_checksum=encoder_checksum(spec),
            device="cuda" if resources.gpus else "cpu",
        ) as run_id,
        catalog.shared_tempdir(run_id) as folder,
    ):
        compiled_batch = batch_size if compile_network and resources.gpus else None
        prepared = _prepare_encoder(
            settings, previous, shard_tasks, compiled_batch, resources, folder
        )
        record = EmbeddingRecord(
            embedding=embedding,
            encoder=spec,
            checkpoint=checkpoint,
            weights_sha256=prepared.weights_sha256,
            dim=prepared.dim,
            preprocessing=provenance.canonical_json(prepared.preparation),
            label_source=roles.label,
            run_id=run_id,
        )
        _create_or_compare(catalog, record)
        task = EmbedShards(
            prepared.plan,
            catalog.embedding_folder(embedding),
            roles,
            batch_size,
            captions=captions,
            fields=fields,
            tombstones=Tombstones.load(catalog.path),
        )
        try:
            _map_shards(
                catalog,
                embedding,
                run_id,
                task,
                # Beside a GPU others read and decode; on a CPU each core is busy with a worker.
                FeedDevice(task, prepared.dim, resources.threads) if resources.gpus else task,
                shard_tasks,
                resources,
                profile,
            )
        finally:
            close_feeder()


class _PreparedEncoder(NamedTuple):
    """What workers need to run an encoder, the length of its vectors, and what is recorded."""

    plan: EncoderPlan
    dim: int
    weights_sha256: str
    preparation: dict[str, Any]


def _prepare_encoder(
    settings: EmbedSettings,
    previous: EmbeddingRecord | None,
    shard_tasks: list[ShardTask],
    compiled_batch: int | None,
    resources: Resources,
    folder: str,
) -> _PreparedEncoder:
    """Load the encoder, and on a processor export it into `folder`; the network is not kept.

    An embedding that exists goes on as it was begun. Raises CurateError.
    """
    spec, checkpoint = settings.encoder, settings.checkpoint
    device = "cuda" if resources.gpus else "cpu"
    kept = load_kept(spec, checkpoint) if device == "cpu" else None
    if kept is None:
        announce(f"embed: loading the encoder {spec}")
    loaded = kept.encoder if kept else make_encoder(spec, checkpoint)
    preprocessing = replace(loaded.preprocessing, decode=settings.decode)  # type: ignore[arg-type]
    if previous:
        preprocessing = replace(preprocessing, convert=preprocessing_of(previous)["convert"])
    weights_sha256, preparation = loaded.weights_sha256, asdict(preprocessing)
    if settings.captions:
        text_sha256 = make_text_tower(spec, checkpoint).weights_sha256
        weights_sha256 = hashlib.sha256(f"{weights_sha256}\n{text_sha256}".encode()).hexdigest()
        preparation["captions"] = True
    preparation |= roles_to_preprocessing(settings.roles)
    onnx = storage.join(folder, "encoder.onnx")
    encoder = replace(loaded, preprocessing=preprocessing)
    plan = plan_encoder(encoder, spec, checkpoint, device, resources.threads, onnx)
    plan = replace(plan, compiled_batch=compiled_batch)
    if kept:
        copy_kept(kept, onnx)
        plan = replace(plan, onnx=onnx)
        dim = kept.dim
    else:
        dim = _measure_dim(plan, resources, len(shard_tasks))
        if plan.onnx == onnx:
            keep_encoder(spec, checkpoint, loaded, onnx, dim)
    return _PreparedEncoder(plan, dim, weights_sha256, preparation)


def _measure_dim(plan: EncoderPlan, resources: Resources, num_shards: int) -> int:
    """See `measure_dim`; on a worker, because this machine may have no GPU. Raises CurateError."""
    one_worker = replace(resources, workers=1, gpus=resources.gpus[:1])
    ((_, dim),) = engine.map_or_raise(measure_dim, [plan], one_worker)
    # Workers of their own run the encoder: this process needs none.
    if len(resources.gpus) > 1:
        load_device.cache_clear()
        free_device_memory()
    elif not resources.gpus and min(resources.workers, num_shards) > 1:
        load_forward.cache_clear()
    return dim


def _plan_resources(device: str, workers: int | None, spec: str) -> Resources:
    """One worker per GPU with its share of the cores, or one worker per core without GPUs.

    One thread per worker was faster than threads inside the encoder. With auto, an encoder that
    cannot use a GPU runs on processors; with cuda, its first batch fails.
    """
    current = engine.current_engine()
    kind, gpus = current.find_devices(device)
    if gpus and device == "auto":
        try:
            check_runs_on_gpus(spec)
        except CurateError as error:
            log.info("on the processor: %s", str(error).removeprefix("--device cuda, but "))
            kind, gpus = "cpu", ()
    cores, smallest_machine = current.count_cores(kind)
    if not gpus:
        count = workers or cores
        return Resources(count, max(cores // count, 1))
    num_decoders = (workers or cores) // len(gpus)
    return Resources(len(gpus), max(min(num_decoders, smallest_machine), 1), gpus)


def _create_or_compare(catalog: Catalog, record: EmbeddingRecord) -> None:
    """Insert the embedding's row, or compare it with the one that exists. Raises CurateError."""
    with catalog.writing() as connection:
        connection.execute(
            "update runs set fingerprint = ? where run_id = ?",
            [record.weights_sha256, record.run_id],
        )
        stored = sets.find_set(connection, EmbeddingRecord, record.embedding)
        if stored is None:
            sets.insert_row(connection, record.table, record.to_dict())
            return
    comparisons: Mapping[str, bool] = {
        "weights_sha256": stored.weights_sha256 == record.weights_sha256,
        "dim": stored.dim == record.dim,
        "preprocessing": preprocessing_of(stored) == preprocessing_of(record),
    }
    for column, is_same in comparisons.items():
        if not is_same:
            raise CurateError(
                f"the embedding '{record.embedding}' was made with other weights or "
                f"preprocessing ({column} differs): choose another --name"
            )


def _map_shards(
    catalog: Catalog,
    embedding: str,
    run_id: int,
    task: EmbedShards,
    run_task: EmbedShards | FeedDevice,
    shard_tasks: list[ShardTask],
    resources: Resources,
    profile: bool,
) -> None:
    """Run the task on groups of shards, committing what is finished as it comes.

    Raises CurateError where the encoder fails: what is finished stays.
    """
    group_bytes = _GPU_GROUP_BYTES if resources.gpus else _GROUP_BYTES
    groups = _group_shards(shard_tasks, resources.workers, group_bytes)
    if isinstance(run_task, EmbedShards):
        # Cores that have no shard of their own share the others'.
        run_task = replace(run_task, threads=max(resources.workers // len(groups), 1))
    notes: set[str] = set()
    uncommitted: list[int] = []
    unreadable: dict[int, str] = {}
    num_complaints, complaint = 0, ""
    seconds: dict[str, float] = {}
    counts = MemberCounts()
    total = sum(shard.num_bytes for shard in shard_tasks) >> 10
    with progress_bar("embed", total) as advance:
        next_commit = 0.0
        for group, result, error in engine.map(run_task, groups, resources, advance=advance):
            if error:
                unreadable |= {shard.shard_id: error for shard in group}
            elif result.end:
                raise CurateError(result.end)
            else:
                for note in result.notes:
                    if note not in notes:
                        log.info("%s", note)
                notes.update(result.notes)
                shard_ids = [shard.shard_id for shard in group]
                uncommitted += [
                    shard_id for shard_id in shard_ids if shard_id not in result.problems
                ]
                unreadable |= result.problems
                num_complaints += result.num_complaints
                complaint = complaint or result.complaint
                add_seconds(seconds, result.seconds)
                counts.merge(result.members)
            if (started := time.monotonic()) >= next_commit:
                # If another process reads the database for long, a later commit includes these.
                with contextlib.suppress(CatalogLockedError):
                    commit_pending(
                        catalog, embedding, run_id, uncommitted, timeout=0, fields=task.fields
                    )
                    uncommitted.clear()
                # Commits take at most a tenth of the time: after one of t seconds, 9 t without.
                next_commit = time.monotonic() + 9 * (time.monotonic() - started)
    commit_pending(catalog, embedding, run_id, uncommitted, fields=task.fields)
    # A group that failed at one shard may have finished shards before it.
    commit_pending(catalog, embedding, run_id, fields=task.fields)
    catalog.record_timing(run_id, seconds)
    log.log(
        logging.INFO if profile else logging.DEBUG,
        "profile: %.1f s of %s workers: %s",
        sum(seconds.values()),
        resources.workers,
        format_shares(seconds),
    )
    record_unreadable(catalog, embedding, unreadable)
    if num_complaints:
        log.info(
            "%s images have broken metadata and were used: %s", f"{num_complaints:,}", complaint
        )
    _log_members(catalog, counts, task.roles)


def _warn_of_copies(catalog: Catalog, shard_ids: list[int]) -> None:
    """Say which of the shards have the bytes of one that was there already, under another URL."""
    with catalog.reading() as connection:
        copies = connection.execute(
            "select copies.url, min(originals.url) from shards as copies "
            "join shards as originals using (checksum) "
            "where copies.shard_id in (select unnest(?)) and copies.num_samples > 0 "
            "and originals.shard_id < copies.shard_id group by all order by all",
            [shard_ids],
        ).fetchall()
    if copies:
        log.warning(
            "%s with the bytes of another, such as '%s' and '%s': their samples are there twice; "
            "`curate dedup` finds them, and --skip-duplicates leaves out new ones",
            count_of(len(copies), "shard"),
            *copies[0],
        )


def _log_members(catalog: Catalog, counts: MemberCounts, roles: MemberRoles) -> None:
    """Say once what was not read, or not clear, in the shards of this call."""
    for message in counts.warnings(roles):
        log.warning("%s", message)
    with catalog.reading() as connection:
        ((num_labelled,),) = connection.execute("select count(label) from samples").fetchall()
    # With a member that is the label, only samples without it were counted.
    is_labelled = num_labelled and roles.label.startswith(JSON_LABEL)
    unlabelled = None if is_labelled else counts.unlabelled_warning()
    if unlabelled:
        log.warning("%s", unlabelled)
    unread = counts.unread_message()
    if unread:
        log.info("%s", unread)


def _group_shards(
    shard_tasks: list[ShardTask], workers: int, max_bytes: int
) -> list[tuple[ShardTask, ...]]:
    """Neighbouring shards, up to a size that still gives every worker several groups.

    Shards that are larger come first: at the end, all other workers would wait for the last.
    """
    total = sum(shard.num_bytes for shard in shard_tasks)
    limit = min(max_bytes, total // (4 * workers))
    groups: list[list[ShardTask]] = []
    group_bytes = limit + 1  # so that the first shard starts a group
    for shard in shard_tasks:
        if group_bytes + shard.num_bytes > limit:
            groups.append([])
            group_bytes = 0
        groups[-1].append(shard)
        group_bytes += shard.num_bytes
    groups.sort(key=lambda group: -max(sum(shard.num_bytes for shard in group), limit))
    return [tuple(group) for group in groups]


def _log_summary(catalog: Catalog, embedding: str, num_given: int, num_attempted: int) -> None:
    """Log what the embedding holds now; the numbers are those of shards given and attempted."""
    with catalog.reading() as connection:
        ((num_shards, embedded, failed),) = connection.execute(
            "select count(*), coalesce(sum(num_embedded), 0), coalesce(sum(num_failed), 0) "
            "from embedded_shards where embedding = ?",
            [embedding],
        ).fetchall()
        damaged = connection.execute(
            "select url, error, (embedding, shard_id) in "
            "(select (embedding, shard_id) from embedded_shards) as is_partly_read "
            "from failures join shards using (shard_id) "
            "where embedding = ? and sample_id is null",
            [embedding],
        ).fetchall()
        ((num_labelled,),) = connection.execute("select count(label) from samples").fetchall()
        ((label_source,),) = connection.execute(
            "select label_source from embeddings where embedding = ?", [embedding]
        ).fetchall()
    for url, error, _ in damaged[:_MAX_DAMAGED_SHOWN]:
        log.warning("%s: %s", url, error)
    if embedded and not num_labelled and label_source != "cls":
        log.warning("no sample has a label in %s: see --label", label_source)
    if num_attempted and (alike := find_alike_labels(catalog)):
        examples = "; ".join(
            " and ".join(f"'{label}'" for label in group[:_MAX_ALIKE_SHOWN])
            for group in alike[:_MAX_ALIKE_SHOWN]
        )
        log.warning("classes that look alike: %s (%s in all)", examples, f"{len(alike):,}")
    unreadable = sum(not is_partly_read for _, _, is_partly_read in damaged)
    title = f"embedding '{embedding}'"
    if not num_attempted:
        title = f"nothing to do, all {num_given} shards are in '{embedding}'"
    log.info(
        "%s: %s shards, %s samples embedded, %s failed%s",
        title,
        f"{num_shards:,}",
        f"{embedded:,}",
        f"{failed:,}",
        f"; {unreadable:,} shards could not be read" if unreadable else "",
    )
