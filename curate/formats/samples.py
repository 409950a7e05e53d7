"""The samples inside one tar: members that follow each other under one key, as in webdataset."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from curate.formats.tar import Member, TarError

# webdataset's rule: the key ends at the first dot of the file's name, folders belong to the key.
# Its own pattern takes folder/._a.jpg, which macOS adds to folder/a.jpg, for a sample with the key
# `folder/`; here hidden files belong to no sample.
_KEY = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
# Where the key ends: at the first dot, or for keys with dots in them (v1/22.00.png) at the last.
FIRST_DOT, LAST_DOT = "first-dot", "last-dot"
KEY_RULES = (FIRST_DOT, LAST_DOT)


class Sample(NamedTuple):
    """Neighbouring members with one key; `offset` and `length` span them in the tar, with headers.

    `members` maps lower-case extensions to bytes; `spellings`, to those that are spelled otherwise.
    """

    key: str
    offset: int
    length: int
    members: dict[str, bytes]
    spellings: dict[str, str]


class CorruptShardError(Exception):
    """A shard cannot be read further; `key` is the sample that was cut short, or empty."""

    def __init__(self, problem: str, key: str) -> None:
        super().__init__(problem)
        self.key = key


def iterate_samples(members: Iterable[Member], key_rule: str = FIRST_DOT) -> Iterator[Sample]:
    """Group a tar's members into samples as webdataset does: neighbours with the same key.

    A second member with the same extension starts a new sample, so a key that comes twice in a row
    is two samples. Members without a key (hidden files, names without a dot) belong to no sample.
    Where the archive is damaged, the whole samples come first, then CorruptShardError.
    """
    sample: Sample | None = None
    try:
        for member in members:
            key, extension = split_name(member.name, key_rule)
            if not key:
                continue
            if sample is not None and (key != sample.key or extension in sample.members):
                yield sample
                sample = None
            if sample is None:
                sample = Sample(key, member.offset, 0, {}, {})
            sample.members[extension] = member.data
            if not member.name.endswith(extension):
                sample.spellings[extension] = to_unicode(member.name)[-len(extension) :]
            sample = sample._replace(length=member.offset + member.length - sample.offset)
    except TarError as error:
        cut_key = split_name(error.member or "", key_rule)[0]
        if sample is not None and (error.at_boundary or cut_key not in ("", sample.key)):
            yield sample
            sample = None
        raise CorruptShardError(str(error), cut_key or (sample.key if sample else "")) from error
    if sample is not None:
        yield sample


def split_name(name: str, key_rule: str = FIRST_DOT) -> tuple[str, str]:
    """The key and the lower-case extension of a member; both empty where it has no key."""
    if key_rule == FIRST_DOT:
        match = _KEY.match(name)
        if not match:
            return "", ""
        key, extension = match.groups()
    else:
        folder, slash, filename = name.rpartition("/")
        stem, dot, extension = filename.rpartition(".")
        if not dot or not stem or filename.startswith("."):
            return "", ""
        key = f"{folder}{slash}{stem}"
    extension = extension.lower()
    return key, extension if extension.isascii() else to_unicode(extension)


def to_unicode(text: str) -> str:
    """A name as Unicode, which Parquet and SQL require: undecodable bytes become escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
