"""What samples hold that is not read, or not clear: counted while shards are read, said once."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from curate.formats.member_roles import (
    JSON_LABEL,
    Choice,
    Choices,
    MemberRoles,
    choose_members,
    is_label_word,
    looks_like_label,
)
from curate.formats.samples import FIRST_DOT, Sample, to_unicode
from curate.formatting import count_of

_MAX_EXTENSIONS = 100  # counted by name, of each kind; names may be as many as samples
_MAX_SHOWN = 5
_MAX_PARSED = 20  # samples of a group whose JSON is looked into for a label
_MAX_JSON_BYTES = 1 << 20
_MAX_DEPTH = 8


@dataclass
class Tally:
    """How many samples, how many of their members, and the first sample's key and members."""

    samples: int = 0
    members: int = 0
    key: str = ""
    extensions: tuple[str, ...] = ()

    def add(self, samples: int, members: int, key: str, extensions: tuple[str, ...]) -> None:
        if not self.samples:
            self.key, self.extensions = key, extensions
        self.samples += samples
        self.members += members

    def describe(self) -> str:
        """The example: `'s0' (frames.0.jpg, frames.1.jpg)`."""
        shown = ", ".join(self.extensions[:_MAX_SHOWN])
        more = " …" if len(self.extensions) > _MAX_SHOWN else ""
        return f"'{self.key}' ({shown}{more})"


@dataclass
class MemberCounts:
    """Of one group of shards, or of several, merged.

    `unclear` is by role (image, label, caption); `unread` and `label_like` are by extension, the
    latter of samples in which no label was found.
    """

    unclear: dict[str, Tally] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    label_like: dict[str, Tally] = field(default_factory=dict)
    num_parsed: int = 0

    def add(self, sample: Sample, roles: MemberRoles) -> None:
        """Count the members of a sample that has an image."""
        extensions = tuple(sample.members)
        if not _has_something_to_count(roles, extensions):
            return
        choices = choose_members(roles, extensions)
        key = to_unicode(sample.key)
        for role, choice in choices._asdict().items():
            if choice.candidates:
                num_ignored = len(choice.candidates) - (choice.extension is not None)
                tally = self.unclear.setdefault(role, Tally())
                tally.add(1, num_ignored, key, choice.candidates)
        for extension in _list_unread(choices, extensions):
            name = _bounded(self.unread, extension)
            self.unread[name] = self.unread.get(name, 0) + 1
        if choices.label.extension is None or roles.label.startswith(JSON_LABEL):
            self._add_label_like(sample, key, choices.label)

    def _add_label_like(self, sample: Sample, key: str, label: Choice) -> None:
        sources = [
            name
            for name in sample.members
            if looks_like_label(name) and name not in label.candidates
        ]
        if "json" in sample.members and self.num_parsed < _MAX_PARSED:
            self.num_parsed += 1
            sources += _label_fields(sample.members["json"])
        for source in sources:
            tally = self.label_like.setdefault(_bounded(self.label_like, source), Tally())
            tally.add(1, 1, key, tuple(sample.members))

    def merge(self, counts: "MemberCounts") -> None:
        """Add the counts of other shards."""
        for totals, tallies in (
            (self.unclear, counts.unclear),
            (self.label_like, counts.label_like),
        ):
            for name, tally in tallies.items():
                total = totals.setdefault(_bounded(totals, name), Tally())
                total.add(tally.samples, tally.members, tally.key, tally.extensions)
        for name, count in counts.unread.items():
            name = _bounded(self.unread, name)
            self.unread[name] = self.unread.get(name, 0) + count

    def warnings(self, roles: MemberRoles) -> Iterator[str]:
        """Where it was not clear which member to read: how many, an example, the remedy."""
        dots = (
            ""
            if roles.key_rule != FIRST_DOT
            else "; if the dots belong to the keys, --key last-dot"
        )
        if image := self.unclear.get("image"):
            yield (
                f"{count_of(image.samples, 'sample')} with several images, of which the first was "
                f"read and {image.members:,} were not, such as {image.describe()}: "
                f"name one with --image {image.extensions[-1]}{dots}"
            )
        for role in ("label", "caption"):
            if tally := self.unclear.get(role):
                yield (
                    f"{count_of(tally.samples, 'sample')} with several {role}s, of which none was "
                    f"read, such as {tally.describe()}: "
                    f"name one with --{role} {tally.extensions[0]}{dots}"
                )

    def unlabelled_warning(self) -> str | None:
        """The members and fields that may hold the label that was not found."""
        sources = sorted(self.label_like.items(), key=lambda item: -item[1].samples)
        if not sources:
            return None
        source, tally = sources[0]
        names = ", ".join(name for name, _ in sources[:_MAX_SHOWN])
        return (
            f"samples have no label, but something that looks like one: {names}, "
            f"such as {tally.describe()}: name it with --label {source}"
        )

    def unread_message(self) -> str | None:
        """The members beside images that no option reads."""
        if not self.unread:
            return None
        counts = sorted(self.unread.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{name} ({count:,})" for name, count in counts[:_MAX_SHOWN])
        more = f" and {len(counts) - _MAX_SHOWN:,} more" if len(counts) > _MAX_SHOWN else ""
        return f"members that no option reads: {shown}{more}; exports keep them"


@functools.lru_cache(maxsize=256)  # nearly all samples have the same extensions
def _has_something_to_count(roles: MemberRoles, extensions: tuple[str, ...]) -> bool:
    """False where there is no image, and where every member is read, with the label among them."""
    choices = choose_members(roles, extensions)
    if choices.image.extension is None:
        return False
    has_label_member = choices.label.extension and not roles.label.startswith(JSON_LABEL)
    is_clear = not any(choice.candidates for choice in choices)
    return not (has_label_member and is_clear and not _list_unread(choices, extensions))


def _list_unread(choices: Choices, extensions: tuple[str, ...]) -> list[str]:
    """The extensions that are neither chosen nor candidates."""
    mentioned = {choice.extension for choice in choices}
    mentioned.update(*(choice.candidates for choice in choices))
    return [extension for extension in extensions if extension not in mentioned]


def _bounded(counts: dict[str, Any], name: str) -> str:
    return name if name in counts or len(counts) < _MAX_EXTENSIONS else "others"


def _label_fields(data: bytes) -> list[str]:
    """The fields of a JSON object that may hold a label, as json:a.b."""
    if len(data) > _MAX_JSON_BYTES:
        return []
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return []
    return [JSON_LABEL + path for path in _iterate_label_paths(content, "", 0)]


def _iterate_label_paths(value: Any, prefix: str, depth: int) -> Iterator[str]:
    if not isinstance(value, dict) or depth > _MAX_DEPTH:
        return
    for name, inner in value.items():
        is_label = is_label_word(name) or any(map(is_label_word, prefix.split(".")))
        if isinstance(inner, dict):
            yield from _iterate_label_paths(inner, f"{prefix}{name}.", depth + 1)
        elif is_label and isinstance(inner, str | int):
            yield f"{prefix}{name}"
