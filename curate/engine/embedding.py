"""The work of `curate embed` for a group of shards: read, decode, encode, write. It knows no catalog."""

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

import numpy as np

from curate import engine, images, shards, vectors
from curate.atomic import replacing
from curate.corpus import Job
from curate.engine import inference
from curate.engine.profile import Clock
from curate.images import ImageError, Preprocessing
from curate.shards import DamagedShard, first_sample_id, readable
from curate.tar import TarReader

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Row:
    """One sample on its way. `error` is set when it failed, and then there is no vector."""

    shard_id: int
    sample_id: int | None
    key: str | None
    byte_offset: int = 0
    num_bytes: int = 0
    label: str | None = None
    caption: str | None = None
    member: str | None = None
    width: int | None = None
    height: int | None = None
    stage: str | None = None
    error: str | None = None
    members: dict[str, bytes] = field(default_factory=dict)
    pixels: np.ndarray | None = None
    vector: np.ndarray | None = None

    def fail(self, stage: str, error: str) -> "Row":
        self.stage, self.error, self.pixels = stage, error, None
        return self


@dataclass
class End:
    """Follows the rows of a shard: what is known of the whole file, and what is wrong with it."""

    shard_id: int
    num_bytes: int = 0
    version: str = ""
    fingerprint: str = ""
    problem: str | None = None


class Unusable(Exception):
    """A sample cannot be used, for the reason given, found at the stage given."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


@dataclass(frozen=True)
class EmbedShards:
    """The task: embed a group of shards, batches spanning them; return the problems by shard id, and where the time went.

    A shard leaves two files, written in this order: `ID.parquet` with the vectors, and
    `pending/ID.parquet` with what the catalog is to know. When the second exists, both are whole.
    """

    model: inference.Model
    folder: Path
    label: str
    batch_size: int
    decoders: int

    def __call__(self, jobs: Iterable[Job]) -> tuple[dict[int, str], dict[str, float]]:
        clock = Clock()
        rows = itertools.chain.from_iterable(map(self._read, jobs))
        if self.decoders:  # they read and decode while this thread encodes: what is left to see is how long it waits
            decoded = clock.each("wait for images", ahead(self._decode, rows, self.decoders, 2 * self.batch_size))
        else:
            decoded = clock.each("decode", map(self._decode, clock.each("read", rows)))
        problems: dict[int, str] = {}
        for shard_id, group in itertools.groupby(self._encode(decoded, clock), key=lambda row: row.shard_id):
            *samples, end = group
            with clock.during("write"):
                problem = self._write(shard_id, samples, end)
            if problem:
                problems[shard_id] = problem
        clock.switch("other")
        return problems, clock.seconds

    def _read(self, job: Job) -> Iterator[Row | End]:
        """The samples of a shard in tar order, then its End."""
        end = End(job.shard_id)
        try:
            before = shards.stat(job.url)
            with shards.open_shard(job.url) as stream:
                yield from self._samples(job, TarReader(stream, job.fingerprint, _opened), end)
            end.version = before.version
            if shards.stat(job.url) != before or end.num_bytes != before.num_bytes:
                end.problem, end.fingerprint = "it changed while it was read", ""
        # The boundary to tars and to the clients of remote file systems: what they raise is this shard's problem alone.
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            end.problem, end.fingerprint = f"cannot be read: {reason}", ""
        if job.fingerprint and end.fingerprint not in ("", job.fingerprint):
            end.problem, end.fingerprint = "its bytes are not those that another embedding read", ""
        yield end

    def _samples(self, job: Job, reader: TarReader, end: End) -> Iterator[Row]:
        sample_ids, told = itertools.count(first_sample_id(job.shard_id)), 0
        try:
            for sample in shards.samples(reader):
                yield Row(job.shard_id, next(sample_ids), readable(sample.key), sample.offset, sample.length,
                          members=sample.members)  # fmt: skip
                engine.tick((reader.num_bytes >> 10) - told, 0)
                told = reader.num_bytes >> 10
        except DamagedShard as damage:
            end.problem = str(damage)
            if damage.key:
                yield Row(job.shard_id, next(sample_ids), readable(damage.key)).fail("shard", end.problem)
            reader.drain()
        end.num_bytes, end.fingerprint = reader.num_bytes, reader.fingerprint
        engine.tick((reader.num_bytes >> 10) - told, 0)

    def _decode(self, row: Row | End) -> Row | End:
        if isinstance(row, Row) and not row.error:
            try:
                _fill(row, self.label, self.model.preprocessing)
            except Unusable as unusable:
                row.fail(unusable.stage, str(unusable))
            row.members = {}
        return row

    def _encode(self, rows: Iterable[Row | End], clock: Clock) -> Iterator[Row | End]:
        """Give every decoded row its vector, in batches that pass over the ends of shards."""
        with clock.during("load the encoder"):
            forward = inference.load(self.model)
        held: list[Row | End] = []
        ready = 0
        for row in rows:
            held.append(row)
            ready += isinstance(row, Row) and row.pixels is not None
            if ready == self.batch_size:
                yield from _encoded(held, forward, clock)
                held, ready = [], 0
        yield from _encoded(held, forward, clock)

    def _write(self, shard_id: int, rows: list[Any], end: Any) -> str | None:
        """Write the shard's two files; return the problem of one that could not be read at all."""
        if end.problem and (not rows or not end.fingerprint):
            return str(end.problem)  # and leave no file
        good = [row for row in rows if not row.error]
        folder, name = self.folder, f"{shard_id:08d}.parquet"
        dim = good[0].vector.shape[0] if good else 1
        matrix = np.stack([row.vector for row in good]) if good else np.empty((0, dim), np.float16)
        written = vectors.write(folder / name, np.array([row.sample_id for row in good]), matrix) if good else ""
        counts = {"num_samples": len(rows), "num_embedded": len(good), "num_failed": len(rows) - len(good)}
        facts = {**counts, "num_bytes": end.num_bytes, "version": end.version, "fingerprint": end.fingerprint,
                 "complete": "no" if end.problem else "yes",
                 "vectors": written}  # fmt: skip
        if end.problem:
            rows = [*rows, Row(shard_id, None, None).fail("shard", end.problem)]
        _write_pending(folder / "pending" / name, rows, facts)
        return None


def _opened(name: str) -> bool:
    """Whether a member is ever looked into, by its name: images, labels and captions."""
    kind = shards.split_name(name)[1].rsplit(".", 1)[-1]
    return kind in images.KINDS or kind in ("cls", "json", "txt")


def _fill(row: Row, label: str, preprocessing: Preprocessing) -> None:
    """Decode the row's image and read its label and caption. Raises Unusable."""
    kind = images.image_kind(row.members)
    if kind is None:
        held = ", ".join(f".{name}" for name in row.members)
        raise Unusable("member", f"no image among its members ({held})")
    row.member = kind
    try:
        decoded = images.decode(row.members[kind], preprocessing)
    except ImageError as error:
        raise Unusable("decode", str(error)) from error
    row.pixels, row.width, row.height = decoded
    row.label = label_of(row.members, label)
    caption = row.members.get("txt")
    row.caption = caption.decode("utf-8", "replace").strip() if caption is not None else None


def label_of(members: dict[str, bytes], source: str) -> str | None:
    """The label as text, or None where the sample has none. Raises Unusable for one that cannot be read."""
    try:
        if source == "cls":
            return members["cls"].decode("utf-8").strip() or None if "cls" in members else None
        fields: Any = json.loads(members["json"]) if "json" in members else {}
        value = fields.get(source.removeprefix("json:")) if isinstance(fields, dict) else None
        text = value if isinstance(value, str) else None if value is None else json.dumps(value)
        return text.encode("utf-8").decode("utf-8") or None if text is not None else None
    except (ValueError, RecursionError) as error:  # wrong UTF-8 and wrong JSON are kinds of ValueError
        raise Unusable("label", f"cannot read the label: {error}") from error


def _encoded(held: list[Row | End], forward: inference.Forward, clock: Clock) -> Iterator[Row | End]:
    batch = [row for row in held if isinstance(row, Row) and row.pixels is not None]
    if batch:
        with np.errstate(over="ignore"), clock.during("encode"):
            found = forward(np.stack([row.pixels for row in batch if row.pixels is not None])).astype(np.float16)
        engine.tick(0, len(batch))
        for row, vector in zip(batch, found, strict=True):
            row.pixels, row.vector = None, vector
            if not np.isfinite(vector).all():
                row.fail("encode", "the encoder's vector is not finite in half precision")
    return iter(held)


def _write_pending(path: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole, text = pa.int64(), pa.string()
    schema = pa.schema({"sample_id": whole, "shard_id": whole, "key": text, "label": text, "caption": text,
                        "byte_offset": whole, "num_bytes": whole, "width": pa.int32(), "height": pa.int32(),
                        "member": text, "stage": text, "error": text})  # fmt: skip
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    table = pa.table(columns, schema=schema).replace_schema_metadata({name: str(fact) for name, fact in facts.items()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int, most: int) -> Iterator[R]:
    """`map` by so many threads working ahead, in order, at most so many results waiting; another thread takes the items."""
    results: Queue[Future[R] | None] = Queue(most)
    stopped = threading.Event()

    def submit(pool: ThreadPoolExecutor) -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                results.put(pool.submit(function, item))
        except BaseException as error:  # handed on to whoever takes the results
            failed: Future[R] = Future()
            failed.set_exception(error)
            results.put(failed)
        finally:
            results.put(None)

    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as feeder:
        fed = feeder.submit(submit, pool)
        try:
            while (result := results.get()) is not None:
                yield result.result()
        finally:
            stopped.set()
            while not fed.done():  # let go of a feeder that waits for room
                with contextlib.suppress(Empty):
                    results.get(timeout=0.05)
