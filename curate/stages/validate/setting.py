"""The setting of a validation: all that a training run depends on besides its arm and its seed.

Selections, fractions and seeds are added to a validation; another setting is another validation,
because runs of two settings cannot be compared.
"""

import json
from typing import Any, NamedTuple

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, SelectionRecord, ValidationRecord
from curate.errors import CurateError
from curate.formats.shard_patterns import expand_patterns
from curate.formatting import file_safe
from curate.stages.staleness import validation_checksum

LABELS, CAPTIONS, CLUSTERS = "labels", "captions", "clusters"
COVERAGE, SELF_SUPERVISED = "coverage", "self-supervised"
TASKS = (LABELS, CAPTIONS, CLUSTERS, COVERAGE, SELF_SUPERVISED)
# What is trained, or measured, where it is none of the models.
MODEL_OF_TASK = {CAPTIONS: "projection", COVERAGE: "nearest"}


class Setting(NamedTuple):
    """`test` and `transfer` are patterns of shards as they were given; each of `test` is a set."""

    task: str
    embedding: str
    model: str
    epochs: int | None
    schedule: str
    seed: int
    within: str | None
    test: list[str]
    transfer: list[str]
    clustering: str | None  # whose clusters are predicted
    label_bins: int | None = None

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return provenance.canonical_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Without an option that is later than some validations, where it is not given."""
        values = self._asdict()
        if self.label_bins is None:
            del values["label_bins"]
        return values

    @property
    def num_results(self) -> int:
        """How many test results a run has: one per test set, or four recalls."""
        return max(len(self.test), 1) * (4 if self.task == CAPTIONS else 1)

    @property
    def extra_folder(self) -> str:
        """The folder of the catalog inside this one that has the test shards."""
        return "transfer" if self.transfer else "test"


def default_name(setting: Setting) -> str:
    """What distinguishes the setting: model, task, schedule and the like, unless the default."""
    words = [
        file_safe(setting.model) if setting.task not in MODEL_OF_TASK else None,
        setting.task if setting.task != LABELS else None,
        setting.schedule if setting.schedule != "epochs" else None,
        f"epochs{setting.epochs}" if setting.epochs else None,
        f"in-{setting.within}" if setting.within else None,
        "transfer" if setting.transfer and setting.task == LABELS else None,
        f"bins{setting.label_bins}" if setting.label_bins else None,
        f"seed{setting.seed}" if setting.seed else None,
    ]
    return "-".join(filter(None, words))


def compute_fingerprint(catalog: Catalog, setting: Setting) -> str:
    """Of the setting, the bytes of the corpus and of the test shards, and the code of the model.

    Raises CurateError for a set or a shard that is no longer there.
    """
    content = [catalog.embedding_fingerprint(setting.embedding)]
    for patterns in (setting.test, setting.transfer):
        if patterns:
            extra = Catalog(catalog.path / setting.extra_folder)
            urls = expand_patterns(patterns)
            content.append(extra.embedding_fingerprint(setting.embedding, urls))
    if setting.within:
        content.append(catalog.require(SelectionRecord, setting.within).fingerprint)
    if setting.clustering:
        content.append(catalog.require(ClusteringRecord, setting.clustering).fingerprint)
    code_checksum = validation_checksum(setting.task, setting.model)
    return provenance.fingerprint("validate", setting.to_dict(), *content, code_checksum)


def is_current(catalog: Catalog, record: ValidationRecord) -> bool:
    """Whether the corpus, the test shards and the code are still those of the validation."""
    if record.setting is None:
        return False
    try:
        current = compute_fingerprint(catalog, Setting.from_json(record.setting))
    except (CurateError, TypeError):  # something is gone, or the setting is a later version's
        return False
    return current == record.fingerprint


def choose_name(catalog: Catalog, requested: str | None, setting: Setting, fingerprint: str) -> str:
    """The name under which this setting goes on, or a new one where the default is taken.

    Raises CurateError where `requested` has another setting.
    """
    base = sets.check_name(requested or default_name(setting))
    name, number = base, 1
    while True:
        existing = catalog.find(ValidationRecord, name)
        if existing is None or existing.fingerprint == fingerprint:
            break
        differences = _list_differences(existing, setting)
        if not differences:  # an earlier state of the corpus or the code, which is replaced
            break
        if requested:
            raise CurateError(
                f"the validation '{name}' has another setting ({differences}): "
                "choose another --name"
            )
        number += 1
        name = f"{base}-{number}"
    return name


def _list_differences(existing: ValidationRecord, setting: Setting) -> str:
    """The options in which a validation has another setting, such as 'test, epochs'."""
    if existing.setting is None:  # of an earlier version, which kept no answers to compare
        return ""
    old: dict[str, Any] = json.loads(existing.setting)
    return ", ".join(name for name, value in setting._asdict().items() if old.get(name) != value)
