"""What is left of forgotten images: enough to know them when they come again, and nothing else.

A tombstone is the SHA-256 of a salt and of the size and the XXH3 (64 bits) of the image's file.
With a salt, which is the list's own, nobody can look up a known image in another list. The list is
a file of the catalog, because workers need it and open no database.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, Self

from curate.errors import CurateError
from curate.storage.atomic import atomic_write

FILENAME = "tombstones.json"


class Tombstones(NamedTuple):
    """The salt, which may be empty, and the tombstones as hexadecimal text."""

    salt: str
    digests: frozenset[str]

    def make(self, image_bytes: int, image_checksum: int) -> str:
        """The tombstone of an image, by the size and the XXH3 of its file."""
        text = f"{self.salt}:{image_bytes}:{image_checksum:016x}"
        return hashlib.sha256(text.encode()).hexdigest()

    def match(self, image_bytes: int, image_checksum: int) -> bool:
        """Whether an image was forgotten."""
        return bool(self.digests) and self.make(image_bytes, image_checksum) in self.digests

    def save(self, folder: Path) -> None:
        """Write the file in a catalog's folder, in one step."""
        content = {"salt": self.salt, "tombstones": sorted(self.digests)}
        with atomic_write(folder / FILENAME) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Those of a catalog's folder; none where nothing was forgotten. Raises CurateError."""
        path = folder / FILENAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(content["salt"]), frozenset(map(str, content["tombstones"])))
        except FileNotFoundError:
            return cls("", frozenset())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CurateError(
                f"'{path}' is damaged, so that forgotten images could come back: restore it from "
                "a copy of the catalog"
            ) from error
