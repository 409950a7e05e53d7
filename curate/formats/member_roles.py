"""Which members of a sample are its image, its label and its caption."""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from curate.formats.samples import FIRST_DOT, split_name

# Of images: see curate.formats.images for the formats.
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")
JSON_LABEL = "json:"
_LABEL_WORDS = frozenset(
    ("cls", "class", "classes", "label", "labels", "target", "targets", "category", "categories")
)
_WORDS = re.compile(r"[a-z0-9]+")


class Choice(NamedTuple):
    """The member that is read, if any; and all that could have been, where that is not clear."""

    extension: str | None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemberRoles:
    """How samples are read.

    `key_rule` is where a member's name is divided into key and extension. `image` and `caption`
    are extensions such as `input.jpg`, None for those that are usual; `label` is an extension, or
    json:FIELD.
    """

    label: str = "cls"
    key_rule: str = FIRST_DOT
    image: str | None = None
    caption: str | None = None

    def choose_image(self, extensions: Iterable[str]) -> Choice:
        """The named one; else the first plain one (`jpg`), else the first that ends so.

        An image beside its mask (`jpg`, `mask.png`) is clear.
        """
        extensions = list(extensions)
        if self.image is not None:
            return Choice(find_extension(extensions, self.image))
        plain = [extension for extension in extensions if extension in EXTENSIONS]
        images = plain or [name for name in extensions if last_extension(name) in EXTENSIONS]
        return Choice(images[0] if images else None, tuple(images) if len(images) > 1 else ())

    def choose_label(self, extensions: Iterable[str]) -> Choice:
        """The member with the label; `json` where it is a field."""
        if self.label.startswith(JSON_LABEL):
            return Choice(find_extension(extensions, "json"))
        return _choose(extensions, self.label)

    def choose_caption(self, extensions: Iterable[str]) -> Choice:
        """The member with the caption: the named one, `txt`, or the only one that ends so."""
        if self.caption is not None:
            return Choice(find_extension(extensions, self.caption))
        label = self.choose_label(extensions).extension
        texts = [name for name in extensions if name != label and not looks_like_label(name)]
        return _choose(texts, "txt")

    def is_read(self, name: str) -> bool:
        """Whether a member is ever read, by its name: images, labels, captions and JSON."""
        extension = split_name(name, self.key_rule)[1]
        named = (self.image, self.label, self.caption)
        return (
            last_extension(extension) in EXTENSIONS
            or last_extension(extension) in ("cls", "json", "txt")
            or any(text and _ends_with(extension, text) for text in named)
        )


class Choices(NamedTuple):
    """Which members of a sample are read."""

    image: Choice
    label: Choice
    caption: Choice


@functools.lru_cache(maxsize=256)  # nearly all samples have the same extensions
def choose_members(roles: MemberRoles, extensions: tuple[str, ...]) -> Choices:
    """The members to read of a sample with these extensions, in the order of the tar."""
    return Choices(
        roles.choose_image(extensions),
        roles.choose_label(extensions),
        roles.choose_caption(extensions),
    )


def find_extension(extensions: Iterable[str], suffix: str) -> str | None:
    """The extension itself, or the first that ends with it: `input.jpg` for `a.input.jpg`."""
    extensions = list(extensions)
    if suffix in extensions:
        return suffix
    return next((name for name in extensions if _ends_with(name, suffix)), None)


def last_extension(extension: str) -> str:
    """`jpg` of `input.jpg`."""
    return extension.rpartition(".")[2]


@functools.lru_cache(maxsize=1024)
def looks_like_label(extension: str) -> bool:
    """Whether a member may hold a label, by its name: `target.cls`, `class.txt`, `label`."""
    words = _WORDS.findall(extension)
    return last_extension(extension) not in EXTENSIONS and not _LABEL_WORDS.isdisjoint(words)


def is_label_word(name: str) -> bool:
    """Whether a field of JSON may hold a label, by its name."""
    return not _LABEL_WORDS.isdisjoint(_WORDS.findall(name.lower()))


def _choose(extensions: Iterable[str], suffix: str) -> Choice:
    """The extension itself, or the only one that ends with it."""
    extensions = list(extensions)
    if suffix in extensions:
        return Choice(suffix)
    candidates = [name for name in extensions if _ends_with(name, suffix)]
    return Choice(candidates[0]) if len(candidates) == 1 else Choice(None, tuple(candidates))


def _ends_with(extension: str, suffix: str) -> bool:
    return extension == suffix or extension.endswith(f".{suffix}")
