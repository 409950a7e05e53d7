"""The work of `curate embed` for a group of shards: read, decode, encode, write.

It knows no catalog.
"""

import collections
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar, cast

import numpy as np

from curate.errors import CurateError
from curate.execution.reporting import report_progress
from curate.execution.timing import Stopwatch
from curate.formats.images import (
    ImageDecodeError,
    Preprocessing,
    collect_complaints,
    decode_image,
    read_image_size,
    take_complaint,
)
from curate.formats.json_fields import FieldTable, find_field, to_text
from curate.formats.member_roles import JSON_LABEL, MemberRoles, choose_members
from curate.formats.sample_ids import caption_file, first_sample_id, shard_filename
from curate.formats.samples import CorruptShardError, iterate_samples, to_unicode
from curate.formats.tar import TarReader
from curate.formats.text import decode_caption, decode_text, spell_value
from curate.formats.tombstones import Tombstones
from curate.formats.vectors import write_vectors
from curate.stages.embed.inference import (
    CannotContinueError,
    EncoderPlan,
    EncodeTexts,
    Forward,
    batch_limits,
    encode_in_parts,
    explain_encoder_errors,
    load_forward,
    load_text_encoder,
)
from curate.stages.embed.member_counts import MemberCounts
from curate.stages.embed.pending import (
    SampleRecord,
    ShardMetadata,
    fields_file,
    pending_file,
    write_pending,
)
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.checksums import bytes_checksum
from curate.storage.credentials import remember_credentials
from curate.storage.files import FileStat

# Characters of a caption that are encoded: no text tower reads so many, and tokenizers take time
# that grows with the square of a word's length.
_MAX_CAPTION = 2_000
_AHEAD = 4  # items in flight for each thread
_SMALL_INPUT = 64  # pixels; an encoder that takes no more is likely to be given small images


Item = TypeVar("Item")


class ShardTask(NamedTuple):
    """One shard to read. `checksum` is from an earlier embedding, to detect changed bytes.

    `num_bytes` is 0 where the server does not say. `address` is the URL with its secrets, and
    `etag` the time stamp or ETag when the shards were listed.
    """

    shard_id: int
    url: str
    num_bytes: int
    checksum: str | None
    address: str
    etag: str = ""


@dataclass
class ShardEnd:
    """Marks the end of a shard in the stream of records: the file's metadata, and its problem.

    One stream goes through reading, decoding and encoding, because batches span shards.
    """

    shard_id: int
    num_bytes: int = 0
    etag: str = ""
    checksum: str = ""
    problem: str | None = None

    is_unusable: bool = False

    def discard(self, problem: str) -> None:
        """Discard the whole shard, with the samples that were read."""
        self.problem, self.is_unusable = problem, True


class SampleError(Exception):
    """A sample cannot be used, for the reason given, found at the stage given."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


class GroupResult(NamedTuple):
    """Problems by shard id, for shards without output; seconds by kind of work; how many images
    were used though Pillow complained of them, with an example; and members that were not read.

    `end` is why the run cannot go on, which is no shard's problem; `notes` are for the user, who is
    told each of them once.
    """

    problems: dict[int, str]
    seconds: dict[str, float]
    num_complaints: int
    complaint: str
    members: MemberCounts
    end: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of_end(cls, error: CannotContinueError) -> Self:
        """The result of a group at which the run ends; shards that were finished before stay so."""
        return cls({}, {}, 0, "", MemberCounts(), str(error))


@dataclass(frozen=True)
class EmbedShards:
    """The task: embed a group of shards; batches span them.

    It writes up to four files per shard, in this order: the vectors, the vectors of the captions,
    the fields of .json members, and the pending file with the rows for the catalog. When the last
    exists, all are complete.
    """

    encoder: EncoderPlan
    folder: str
    roles: MemberRoles
    batch_size: int
    captions: bool = False  # whether they are embedded too
    fields: str | list[str] | None = None  # of .json members, to keep as columns
    tombstones: Tombstones | None = None  # of images that must not come back
    threads: int = 1  # that decode and encode side by side, where shards are fewer than cores

    @property
    def modules(self) -> tuple[str, ...]:
        """What takes workers long to import: torch, by whose operators photos are resized."""
        preprocessing = self.encoder.preprocessing
        takes_photos = preprocessing.size > _SMALL_INPUT
        return ("torch",) if takes_photos and preprocessing.decode == "fast" else ()

    def __call__(self, shards: Iterable[ShardTask]) -> GroupResult:
        stopwatch, counts = Stopwatch(), MemberCounts()
        with collect_complaints(), ThreadPoolExecutor(self.threads) as pool:
            read = stopwatch.measure_each("read", self.read_shards(shards, counts))
            decoded = stopwatch.measure_each("decode", self._map(pool, self.decode, read))
            try:
                encoded = self._encode(decoded, stopwatch, pool)
                return self.write_shards(encoded, stopwatch, counts)
            except CannotContinueError as error:
                return GroupResult.of_end(error)

    def _map(
        self, pool: ThreadPoolExecutor, function: Callable[[Item], Item], items: Iterable[Item]
    ) -> Iterator[Item]:
        """The function of each item, in order; by several threads, for some items ahead."""
        if self.threads == 1:
            yield from map(function, items)
            return
        waiting: collections.deque[Future[Item]] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def read_shards(
        self, shards: Iterable[ShardTask], counts: MemberCounts
    ) -> Iterator[SampleRecord | ShardEnd]:
        """The samples of each shard in tar order, then its end."""
        return itertools.chain.from_iterable(self._read_shard(shard, counts) for shard in shards)

    def write_shards(
        self,
        encoded: Iterable[SampleRecord | ShardEnd],
        stopwatch: Stopwatch,
        counts: MemberCounts,
    ) -> GroupResult:
        """Write the files of each shard when its end comes."""
        problems: dict[int, str] = {}
        num_complaints, complaint = 0, ""
        for shard_id, group in itertools.groupby(encoded, key=lambda record: record.shard_id):
            samples: list[Any] = list(group)
            end = samples.pop()
            complaining = [record for record in samples if record.complaint]
            num_complaints += len(complaining)
            if complaining and not complaint:
                complaint = f"{complaining[0].complaint} ('{complaining[0].key}')"
            with stopwatch.measure("write"):
                problem = self._write_shard(samples, end)
            if problem:
                problems[shard_id] = problem
        stopwatch.switch("other")
        notes = tuple(limit.note for limit in batch_limits(self.encoder) if limit.note)
        return GroupResult(
            problems, stopwatch.seconds, num_complaints, complaint, counts, notes=notes
        )

    def _read_shard(
        self, shard: ShardTask, counts: MemberCounts
    ) -> Iterator[SampleRecord | ShardEnd]:
        """The samples of a shard in tar order, then its end."""
        end = ShardEnd(shard.shard_id)
        remember_credentials(shard.address)
        try:
            if files.supports_ranges(shard.url) and shard.num_bytes and shard.etag:
                before = FileStat(shard.num_bytes, shard.etag)  # a request less for each shard
            else:
                before = files.stat(shard.url)
            with files.open_binary(shard.url, sequential=True, known_stat=before) as stream:
                reader = TarReader(stream, shard.checksum, self.roles.is_read)
                yield from self._read_samples(shard, reader, end, counts)
            after = files.stat_after(shard.url, before)
            end.etag = after.etag
            if not after.matches(end.num_bytes, before.etag):
                end.discard("it changed while it was read")
        # The boundary to tars and to clients of remote file systems: what they raise is this
        # shard's problem alone.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.strerror:
                reason = error.strerror
            end.discard(f"cannot be read: {reason}")
        if shard.checksum and end.checksum not in ("", shard.checksum) and not end.is_unusable:
            end.discard("its bytes are not those that another embedding read")
        yield end

    def _read_samples(
        self, shard: ShardTask, reader: TarReader, end: ShardEnd, counts: MemberCounts
    ) -> Iterator[SampleRecord]:
        sample_ids, reported = itertools.count(first_sample_id(shard.shard_id)), 0
        try:
            for sample in iterate_samples(reader, self.roles.key_rule):
                if self._is_forgotten(sample.members):
                    next(sample_ids)  # which the others keep
                    continue
                counts.add(sample, self.roles)
                yield SampleRecord(
                    shard.shard_id,
                    next(sample_ids),
                    to_unicode(sample.key),
                    sample.offset,
                    sample.length,
                    members=sample.members,
                    spellings=sample.spellings,
                )
                report_progress((reader.num_bytes >> 10) - reported, 0)
                reported = reader.num_bytes >> 10
        except CorruptShardError as error:
            end.problem = str(error)
            if error.key:
                record = SampleRecord(shard.shard_id, next(sample_ids), to_unicode(error.key))
                yield record.fail("shard", end.problem)
            reader.drain()
        end.num_bytes, end.checksum = reader.num_bytes, reader.checksum
        report_progress((reader.num_bytes >> 10) - reported, 0)

    def _is_forgotten(self, members: dict[str, bytes]) -> bool:
        """Whether a sample has an image that was forgotten, under whatever key."""
        if self.tombstones is None or not self.tombstones.digests:
            return False
        return any(
            self.tombstones.match(len(content), bytes_checksum(content))
            for content in members.values()
        )

    def decode(self, record: SampleRecord | ShardEnd) -> SampleRecord | ShardEnd:
        """Decode a sample's image, and read its label and caption; what fails is noted in it."""
        if isinstance(record, SampleRecord) and not record.error:
            try:
                _decode_members(record, self.roles, self.encoder.preprocessing)
            except SampleError as error:
                record.fail(error.stage, str(error))
            json_member = record.members.get("json")
            record.members = {}
            if self.fields is not None and json_member is not None:
                record.members = {"json": json_member}  # for the columns, when the shard is written
        return record

    def _encode(
        self,
        records: Iterable[SampleRecord | ShardEnd],
        stopwatch: Stopwatch,
        pool: ThreadPoolExecutor,
    ) -> Iterator[SampleRecord | ShardEnd]:
        """Give every decoded record its vector, in batches that span shards."""
        with stopwatch.measure("load the encoder"), explain_encoder_errors(self.encoder):
            forward = load_forward(self.encoder)
            encode_texts = load_text_encoder(self.encoder) if self.captions else None

        def encode(batch: list[SampleRecord | ShardEnd]) -> list[SampleRecord | ShardEnd]:
            # Of several threads, the waiting is measured.
            own = stopwatch if self.threads == 1 else Stopwatch()
            self._encode_batch(batch, forward, encode_texts, own)
            return batch

        batches = self._map(pool, encode, self._make_batches(records))
        if self.threads > 1:
            batches = stopwatch.measure_each("encode", batches)
        yield from itertools.chain.from_iterable(batches)

    def _make_batches(
        self, records: Iterable[SampleRecord | ShardEnd]
    ) -> Iterator[list[SampleRecord | ShardEnd]]:
        """As many images in each as --batch-size says, with what is between them."""
        batch: list[SampleRecord | ShardEnd] = []
        num_images = 0
        for record in records:
            batch.append(record)
            num_images += isinstance(record, SampleRecord) and record.rgbx is not None
            if num_images == self.batch_size:
                yield batch
                batch, num_images = [], 0
        yield batch

    def _encode_batch(
        self,
        records: list[SampleRecord | ShardEnd],
        forward: Forward,
        encode_texts: EncodeTexts | None,
        stopwatch: Stopwatch,
    ) -> None:
        """Set the vectors of the decoded records, and those of their captions."""
        batch = [
            record
            for record in records
            if isinstance(record, SampleRecord) and record.rgbx is not None
        ]
        if not batch:
            return
        image_limit, text_limit = batch_limits(self.encoder)
        with stopwatch.measure("encode"):
            images = [record.rgbx for record in batch if record.rgbx is not None]
            set_vectors(batch, encode_in_parts(self.encoder, forward, images, image_limit))
        if encode_texts is not None:
            captions = captions_to_encode(batch)
            captioned = [record for record, text in zip(batch, captions, strict=True) if text]
            if captioned:
                with stopwatch.measure("encode captions"):
                    texts = [text for text in captions if text]
                    vectors = encode_in_parts(self.encoder, encode_texts, texts, text_limit)
                    set_caption_vectors(captioned, vectors)
        report_progress(0, len(batch))

    def _write_shard(self, records: list[SampleRecord], end: ShardEnd) -> str | None:
        """Write the shard's files, or return the problem of one that is not usable at all."""
        shard_id = end.shard_id
        if end.problem and (end.is_unusable or not records):
            return end.problem
        embedded = [record for record in records if not record.error]
        location = files.join(self.folder, shard_filename(shard_id))
        vectors_checksum = _write_vectors(location, embedded, [one.vector for one in embedded])
        captions_checksum = None
        if self.captions:
            captioned = [record for record in embedded if record.caption]
            captions_checksum = _write_vectors(
                caption_file(self.folder, shard_id),
                captioned,
                [record.caption_vector for record in captioned],
            )
        if self.fields is not None:
            write_fields(fields_file(self.folder, shard_id), embedded, self.fields)
        metadata = ShardMetadata(
            num_samples=len(records),
            num_embedded=len(embedded),
            num_failed=len(records) - len(embedded),
            num_bytes=end.num_bytes,
            etag=end.etag,
            checksum=end.checksum,
            complete=not end.problem,
            vectors_checksum=vectors_checksum,
            captions_checksum=captions_checksum,
            has_fields=self.fields is not None,
        )
        if end.problem:
            failure = SampleRecord(shard_id, None, None).fail("shard", end.problem)
            records = [*records, failure]
        write_pending(pending_file(self.folder, shard_id), records, metadata)
        return None


def _write_vectors(
    location: str, records: list[SampleRecord], vectors: list[np.ndarray | None]
) -> str:
    """Write a vector for each record; returns the file's checksum, and no text without records."""
    if not records:
        return ""
    sample_ids = np.array([record.sample_id for record in records])
    return write_vectors(location, sample_ids, np.stack(cast("list[np.ndarray]", vectors)))


def write_fields(location: str, records: list[SampleRecord], requested: str | list[str]) -> None:
    """Write the fields of the records' .json members."""
    table = FieldTable(requested)
    for record in records:
        if record.sample_id is not None:
            table.add(record.sample_id, record.members.get("json"))
    table.write(location)


@dataclass(frozen=True)
class ReadFields:
    """The task: write the fields of the .json members of one shard that is embedded already.

    The file is in `folder`, named as the shard. Raises CurateError for a shard that cannot be read.
    """

    reader: EmbedShards
    folder: str

    def __call__(self, shard: ShardTask) -> None:
        records: list[SampleRecord] = []
        for record in self.reader._read_shard(shard, MemberCounts()):
            if isinstance(record, ShardEnd):
                if record.is_unusable:
                    raise CurateError(record.problem or "")
                break
            json_member = record.members.get("json")
            record.members = {} if json_member is None else {"json": json_member}
            records.append(record)
        location = files.join(self.folder, shard_filename(shard.shard_id))
        write_fields(location, records, self.reader.fields or [])


@dataclass(frozen=True)
class ReadSamples:
    """The task: read the samples of a shard but for their pixels, for vectors computed elsewhere.

    It writes two files named as the shard in `folder`: rows as in a pending file, and keys-… with
    the `sample_key` of each sample that can be used: its key, or a field of its .json member.
    Returns the problem of a shard that cannot be used at all.
    """

    reader: EmbedShards
    folder: str
    sample_key: str

    def __call__(self, shard: ShardTask) -> str | None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        records: list[SampleRecord] = []
        keys: dict[int, str | None] = {}
        end = ShardEnd(shard.shard_id)
        for record in self.reader._read_shard(shard, MemberCounts()):
            if isinstance(record, ShardEnd):
                end = record
                break
            if not record.error:
                try:
                    _read_members(record, self.reader.roles)
                except SampleError as error:
                    record.fail(error.stage, str(error))
            if not record.error and record.sample_id is not None:
                keys[record.sample_id] = self._find_key(record)
            record.members = {}
            records.append(record)
        if end.problem and (end.is_unusable or not records):
            return end.problem
        num_samples, num_usable = len(records), len(keys)
        if end.problem:
            records.append(SampleRecord(shard.shard_id, None, None).fail("shard", end.problem))
        metadata = ShardMetadata(
            num_samples=num_samples,
            num_embedded=num_usable,
            num_failed=num_samples - num_usable,
            num_bytes=end.num_bytes,
            etag=end.etag,
            checksum=end.checksum,
            complete=not end.problem,
            vectors_checksum="",
            captions_checksum=None,
        )
        name = shard_filename(shard.shard_id)
        table = pa.table(
            {
                "sample_id": pa.array(keys.keys(), pa.int64()),
                "key": pa.array(keys.values(), pa.string()),
            }
        )
        with atomic_write(files.join(self.folder, f"keys-{name}")) as temporary:
            pq.write_table(table, temporary)
        write_pending(files.join(self.folder, name), records, metadata)
        return None

    def _find_key(self, record: SampleRecord) -> str | None:
        if self.sample_key == "key":
            return record.key
        return read_json_text(record.members, self.sample_key.removeprefix("json:"))


def _read_members(record: SampleRecord, roles: MemberRoles) -> None:
    """Read the size of the record's image, its label and its caption. Raises SampleError."""
    image = _choose_image(record, roles)
    try:
        record.width, record.height = read_image_size(image)
    except ImageDecodeError as error:
        raise SampleError("decode", str(error)) from error
    _read_texts(record, roles)


def read_json_text(members: dict[str, bytes], path: str) -> str | None:
    """A field of the .json member as text, or None where there is none."""
    try:
        fields: Any = json.loads(members["json"]) if "json" in members else {}
    except (ValueError, RecursionError):
        return None
    value = find_field(fields, path) if isinstance(fields, dict) else None
    return None if value is None else to_text(value)


def make_reader(
    folder: str,
    roles: MemberRoles,
    fields: str | list[str] | None,
    tombstones: Tombstones,
) -> EmbedShards:
    """The task without an encoder, for those who only read shards as it does."""
    no_encoder = EncoderPlan("", None, "cpu", 1, Preprocessing(1, 1), None)
    return EmbedShards(
        no_encoder,
        folder,
        roles,
        batch_size=1,
        fields=fields,
        tombstones=tombstones,
    )


def _decode_members(record: SampleRecord, roles: MemberRoles, preprocessing: Preprocessing) -> None:
    """Decode the record's image and read its label and caption. Raises SampleError."""
    content = _choose_image(record, roles)
    try:
        image = decode_image(content, preprocessing, with_checksum=True)
    except ImageDecodeError as error:
        raise SampleError("decode", str(error)) from error
    record.complaint = take_complaint()
    record.rgbx, record.width, record.height, record.pixels_checksum = image
    _read_texts(record, roles)


def _choose_image(record: SampleRecord, roles: MemberRoles) -> bytes:
    """The bytes of the record's image, whose member is noted. Raises SampleError without one."""
    extension = choose_members(roles, tuple(record.members)).image.extension
    if extension is None:
        extensions = ", ".join(f".{name}" for name in record.members)
        missing = f"no .{roles.image}" if roles.image else "no image"
        raise SampleError("member", f"{missing} among its members ({extensions})")
    content = record.members[extension]
    record.member = record.spellings.get(extension, extension)
    record.image_bytes, record.image_checksum = len(content), bytes_checksum(content)
    return content


def _read_texts(record: SampleRecord, roles: MemberRoles) -> None:
    """Read the record's label and caption. Raises SampleError."""
    record.label = read_label(record.members, roles)
    extension = choose_members(roles, tuple(record.members)).caption.extension
    try:
        caption = decode_caption(record.members.get(extension or "", b""))
    except ValueError as error:
        raise SampleError("caption", f"cannot read the caption: {error}") from error
    record.caption = caption or None


def read_label(members: dict[str, bytes], roles: MemberRoles) -> str | None:
    """The label as text, or None where the sample has none.

    Raises SampleError for one that cannot be read.
    """
    try:
        content = members.get(choose_members(roles, tuple(members)).label.extension or "", b"")
        if not roles.label.startswith(JSON_LABEL):
            return decode_text(content) or None
        fields: Any = json.loads(content) if content else {}
        value = (
            find_field(fields, roles.label.removeprefix(JSON_LABEL))
            if isinstance(fields, dict)
            else None
        )
        if value is None:
            return None
        text = json.dumps(value) if isinstance(value, list | dict) else spell_value(value)
        if text is not None:
            text.encode("utf-8")  # JSON can hold halves of surrogate pairs, which are not Unicode
        return text or None
    # Wrong UTF-8 and wrong JSON are kinds of ValueError.
    except (ValueError, RecursionError) as error:
        raise SampleError("label", f"cannot read the label: {error}") from error


def set_vectors(records: list[SampleRecord], vectors: np.ndarray) -> None:
    """Give decoded records their vectors, [n, dim] in half precision.

    One that does not fit into half precision fails.
    """
    is_finite = np.isfinite(vectors).all(axis=1).tolist()
    for record, vector, fits in zip(records, vectors, is_finite, strict=True):
        record.rgbx, record.vector = None, vector
        if not fits:
            record.fail("encode", "the encoder's vector is not finite in half precision")


def captions_to_encode(records: list[SampleRecord]) -> list[str | None]:
    """What of each record's caption is encoded; None where it has none, or has failed."""
    return [
        record.caption[:_MAX_CAPTION] if record.caption and not record.error else None
        for record in records
    ]


def set_caption_vectors(records: list[SampleRecord], vectors: np.ndarray) -> None:
    """Give records their captions' vectors, [n, dim] in half precision."""
    for record, vector in zip(records, vectors, strict=True):
        record.caption_vector = vector
        if not np.isfinite(vector).all():
            record.fail("encode", "the vector of its caption is not finite in half precision")
