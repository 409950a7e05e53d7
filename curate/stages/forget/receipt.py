"""The receipt of a forgetting: what was removed from where, and how to prove that it is gone."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from curate.errors import CurateError
from curate.stages.forget.targets import NearCopy, Target
from curate.storage import files
from curate.storage.atomic import atomic_write


@dataclass
class Receipt:
    """A JSON file. It names the samples, so it lies outside of the catalog.

    `removed` counts what went, by table and file; `rewritten` are exports and lists; `deleted` are
    pictures and pages that can be made again; `kept_shards` still hold the samples' bytes.
    `made_with` are the sets, by kind and name, that were computed from the samples or trained on
    them. `patterns` are those of `curate.stages.forget.patterns`, of images and vectors;
    `searched_keys` are the keys that are searched for as they are.
    """

    curate: str
    catalog: str
    forgotten_at: str
    samples: list[Target]
    rewrite_shards: bool
    location: str  # of the receipt
    shard_bytes: dict[str, int]  # of the shards with these samples, before
    complete: bool = False
    removed: dict[str, int] = field(default_factory=dict)
    rewritten: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    kept_shards: list[str] = field(default_factory=list)
    near_copies: list[NearCopy] = field(default_factory=list)
    made_with: list[tuple[str, str]] = field(default_factory=list)
    without_tombstone: list[str] = field(default_factory=list)
    patterns: list[int] = field(default_factory=list)
    searched_keys: list[str] = field(default_factory=list)

    def save(self, location: str) -> None:
        """Write the file in one step."""
        content = asdict(self) | {
            "samples": [target._asdict() for target in self.samples],
            "near_copies": [copy._asdict() for copy in self.near_copies],
            "patterns": [f"{pattern:016x}" for pattern in self.patterns],
        }
        with atomic_write(location) as temporary:
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, location: str) -> Self:
        """Read the file. Raises CurateError for what is no receipt."""
        try:
            content: dict[str, Any] = json.loads(files.read_bytes(location))
            return cls(
                **content
                | {
                    "samples": [Target(**target) for target in content["samples"]],
                    "near_copies": [NearCopy(**copy) for copy in content["near_copies"]],
                    "made_with": [(kind, name) for kind, name in content["made_with"]],
                    "patterns": [int(pattern, 16) for pattern in content["patterns"]],
                }
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CurateError(
                f"'{location}' is no receipt of `curate forget` ({type(error).__name__}): name the "
                "file that it wrote"
            ) from error
