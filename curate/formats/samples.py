"""The samples inside one tar: members that follow each other under one key, as in webdataset."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from curate.formats.tar import Member, TarError

# webdataset's rule: the key ends at the first dot of the file's name, folders belong to the key.
# Its own pattern takes folder/._a.jpg, which macOS adds to folder/a.jpg, for a sample with the key
# `folder/`; here hidden files belong to no sample.
_KEY = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)


class Sample(NamedTuple):
    """Neighbouring members with one key; `offset` and `length` span them in the tar, with headers.

    `members` maps lower-case extensions to bytes.
    """

    key: str
    offset: int
    length: int
    members: dict[str, bytes]


class CorruptShardError(Exception):
    """A shard cannot be read further; `key` is the sample that was cut short, or empty."""

    def __init__(self, problem: str, key: str) -> None:
        super().__init__(problem)
        self.key = key


def iterate_samples(members: Iterable[Member]) -> Iterator[Sample]:
    """Group a tar's members into samples as webdataset does: neighbours with the same key.

    A second member with the same extension starts a new sample, so a key that comes twice in a row
    is two samples. Members without a key (hidden files, names without a dot) belong to no sample.
    Where the archive is damaged, the whole samples come first, then CorruptShardError.
    """
    sample: Sample | None = None
    try:
        for member in members:
            key, extension = split_name(member.name)
            if not key:
                continue
            if sample is not None and (key != sample.key or extension in sample.members):
                yield sample
                sample = None
            if sample is None:
                sample = Sample(key, member.offset, 0, {})
            sample.members[extension] = member.data
            sample = sample._replace(length=member.offset + member.length - sample.offset)
    except TarError as error:
        cut_key = split_name(error.member or "")[0]
        if sample is not None and (error.at_boundary or cut_key not in ("", sample.key)):
            yield sample
            sample = None
        raise CorruptShardError(str(error), cut_key or (sample.key if sample else "")) from error
    if sample is not None:
        yield sample


def split_name(name: str) -> tuple[str, str]:
    """The key and the lower-case extension of a member; both empty where it has no key."""
    match = _KEY.match(name)
    if not match:
        return "", ""
    key, extension = match.groups()
    extension = extension.lower()
    return key, extension if extension.isascii() else to_unicode(extension)


def to_unicode(text: str) -> str:
    """A name as Unicode, which Parquet and SQL require: undecodable bytes become escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
