"""Rows of the catalog as typed records: the fields are the columns, in the order of schema.sql."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self


@dataclass(frozen=True)
class SetRecord:
    """The row of a named set, which says how it was made.

    `kind` is also the column with the set's name. `command` is what makes such a set.
    """

    kind: ClassVar[str]
    table: ClassVar[str]
    body_tables: ClassVar[tuple[str, ...]]
    command: ClassVar[str]

    @property
    def name(self) -> str:
        return str(getattr(self, self.kind))

    @property
    def last_run_id(self) -> int:
        """The run that made it, or that it grew by."""
        return int(vars(self)["run_id"])

    @classmethod
    def columns(cls) -> list[str]:
        return [field.name for field in fields(cls)]

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Self:
        return cls(*row)

    def to_dict(self) -> dict[str, Any]:
        return {column: getattr(self, column) for column in self.columns()}


@dataclass(frozen=True)
class EmbeddingRecord(SetRecord):
    kind: ClassVar[str] = "embedding"
    table: ClassVar[str] = "embeddings"
    body_tables: ClassVar[tuple[str, ...]] = ("embedded_shards", "failures")
    command: ClassVar[str] = "curate embed SHARDS"

    embedding: str
    encoder: str
    checkpoint: str | None
    weights_sha256: str
    dim: int
    preprocessing: str  # JSON
    label_source: str
    run_id: int


@dataclass(frozen=True)
class ClusteringRecord(SetRecord):
    kind: ClassVar[str] = "clustering"
    table: ClassVar[str] = "clusterings"
    body_tables: ClassVar[tuple[str, ...]] = ("assignments", "clustering_updates")
    command: ClassVar[str] = "curate cluster"

    clustering: str
    embedding: str
    distance: str
    k: int
    iterations: int
    seed: int
    objective: float
    centroids_file: str
    fit_rows: int
    num_samples: int
    fingerprint: str
    run_id: int
    full_iterations: int
    centroids_checksum: str | None


@dataclass(frozen=True)
class ProbeRecord(SetRecord):
    kind: ClassVar[str] = "probe"
    table: ClassVar[str] = "probes"
    body_tables: ClassVar[tuple[str, ...]] = ("probe_models",)
    command: ClassVar[str] = "curate probe"

    probe: str
    embedding: str
    models: list[str]
    num_models: int
    epochs: int
    fraction: float
    seed: int
    test: list[str]
    num_classes: int
    num_samples: int
    num_test: int
    folder: str
    fingerprint: str
    run_id: int


@dataclass(frozen=True)
class ScoringRecord(SetRecord):
    kind: ClassVar[str] = "scoring"
    table: ClassVar[str] = "scorings"
    body_tables: ClassVar[tuple[str, ...]] = ("scores", "scoring_inputs")
    command: ClassVar[str] = "curate score METRIC"

    scoring: str
    metric: str
    source: str | None
    arguments: str  # JSON
    num_samples: int
    num_null: int
    reliability: float | None
    fingerprint: str
    run_id: int


@dataclass(frozen=True)
class SelectionRecord(SetRecord):
    kind: ClassVar[str] = "selection"
    table: ClassVar[str] = "selections"
    body_tables: ClassVar[tuple[str, ...]] = (
        "members",
        "membership_changes",
        "scratch_comparisons",
    )
    command: ClassVar[str] = "curate select --keep F"

    selection: str
    scoring: str | None
    strategy: str
    keep: float
    scope: str
    balance: float
    balance_by: str
    balance_base: str
    where_sql: str | None
    seed: int
    skip_hardest: float
    num_candidates: int
    num_samples: int
    fingerprint: str
    run_id: int
    known_shards: list[int] | None = None  # first and last ids of runs of shards
    weights_by: str | None = None  # the strata of the weights
    strategy_options: str | None = None  # those that are not the defaults
    repeats: float | None = None  # the expected number of the best samples in an epoch

    @property
    def num_presentations(self) -> int:
        """The samples of an epoch, those that repeat as often as they come."""
        return self.num_samples if self.repeats is None else round(self.keep * self.num_candidates)


@dataclass(frozen=True)
class DeduplicationRecord(SetRecord):
    kind: ClassVar[str] = "deduplication"
    table: ClassVar[str] = "deduplications"
    body_tables: ClassVar[tuple[str, ...]] = ("duplicates",)
    command: ClassVar[str] = "curate dedup"

    deduplication: str
    embedding: str | None
    method: str
    eps: float | None
    keep_best: str
    against: str | None
    num_candidates: int
    num_groups: int
    num_rows: int
    num_exact: int
    num_near: int
    num_contradicting: int
    fingerprint: str
    run_id: int


@dataclass(frozen=True)
class ExportRecord(SetRecord):
    kind: ClassVar[str] = "export"
    table: ClassVar[str] = "exports"
    body_tables: ClassVar[tuple[str, ...]] = ()
    command: ClassVar[str] = "curate export SELECTION OUT"

    export: str
    selection: str
    path: str
    layout: str
    num_shards: int
    num_samples: int
    num_bytes: int
    fingerprint: str
    run_id: int


@dataclass(frozen=True)
class ValidationRecord(SetRecord):
    kind: ClassVar[str] = "validation"
    table: ClassVar[str] = "validations"
    body_tables: ClassVar[tuple[str, ...]] = (
        "training_runs",
        "comparisons",
        "class_accuracies",
    )
    command: ClassVar[str] = "curate validate"

    validation: str
    embedding: str
    model: str
    epochs: int
    schedule: str
    seeds: int
    seed: int
    test: list[str]
    num_test: int
    num_samples: int
    num_training_runs: int
    fingerprint: str
    run_id: int
    transfer: list[str]
    task: str
    setting: str | None  # JSON
    tolerance: float  # points


@dataclass(frozen=True)
class FitRecord(SetRecord):
    kind: ClassVar[str] = "fit"
    table: ClassVar[str] = "fits"
    body_tables: ClassVar[tuple[str, ...]] = ("fit_points",)
    command: ClassVar[str] = "curate fit"

    fit: str
    model: str
    arms: str
    form: str
    exponent: float
    exponent_low: float
    exponent_high: float
    amplitude: float
    asymptote: float
    num_points: int
    seeds: int
    fingerprint: str
    run_id: int
    schedule: str | None
    epochs: int | None
    strategy: str | None
    keep: float | None
    metric: str | None
    exponent_vs_random: float | None
    exponent_vs_random_interval: float | None
    strategy_options: str | None


@dataclass(frozen=True)
class AuditRecord(SetRecord):
    kind: ClassVar[str] = "audit"
    table: ClassVar[str] = "audits"
    body_tables: ClassVar[tuple[str, ...]] = ("audit_groups", "audit_contributions")
    command: ClassVar[str] = "curate audit SELECTION"

    audit: str
    selection: str
    grouped_by: str
    clustering: str | None
    embedding: str
    floor: float
    seeds: int
    seed: int
    num_candidates: int
    num_samples: int
    num_groups: int
    num_vanished: int
    random_num_vanished: float
    num_below_floor: int
    random_num_below_floor: float
    kl: float
    random_kl: float
    effective_groups: float
    random_effective_groups: float
    all_effective_groups: float
    distance_mean: float | None
    random_distance_mean: float | None
    distance_99: float | None
    random_distance_99: float | None
    near_duplicate_share: float | None
    random_near_duplicate_share: float | None
    near_duplicate_cosine: float | None
    fingerprint: str
    run_id: int


SET_TYPES: tuple[type[SetRecord], ...] = (
    EmbeddingRecord,
    ClusteringRecord,
    ProbeRecord,
    ScoringRecord,
    DeduplicationRecord,
    SelectionRecord,
    ValidationRecord,
    FitRecord,
    AuditRecord,
    ExportRecord,
)
SET_TYPES_BY_KIND = {record_type.kind: record_type for record_type in SET_TYPES}


class ShardRecord(NamedTuple):
    """A row of `shards`."""

    shard_id: int
    url: str
    num_bytes: int
    etag: str
    num_samples: int | None
    checksum: str | None
    complete: bool | None


class ColumnRecord(NamedTuple):
    """A row of `column_sources`."""

    column_name: str
    source: str
    field: str
    type: str
    run_id: int


class TrainingRunRecord(NamedTuple):
    """A row of `training_runs`."""

    validation: str
    arm: str
    selection: str | None
    keep: float
    seed: int
    num_samples: int
    epochs: int
    accuracy: float
    loss: float
    seconds: float
    test: str
    num_test: int | None
    correct: bytes | None
    selection_fingerprint: str | None
    distance_99: float | None


class ComparisonRecord(NamedTuple):
    """A row of `comparisons`; accuracies and differences in points."""

    validation: str
    selection: str
    baseline: str
    test: str
    seeds: int
    num_test: int
    accuracy: float
    baseline_accuracy: float
    difference: float
    half_width: float
    variance: float
    freedom: float
    seed_variance: float
    sample_variance: float
    residual_variance: float


class ClassAccuracyRecord(NamedTuple):
    """A row of `class_accuracies`."""

    validation: str
    arm: str
    selection: str | None
    seed: int
    label: str
    num_test: int
    accuracy: float
    test: str


class ProbeModelRecord(NamedTuple):
    """A row of `probe_models`."""

    probe: str
    part: str
    model: str
    seed: int
    accuracy: float | None
    left_out_accuracy: float | None
    test_accuracy: float | None
    seconds: float


class FitPointRecord(NamedTuple):
    """A row of `fit_points`."""

    fit: str
    num_samples: float
    error: float
    fitted: float


class AuditGroupRecord(NamedTuple):
    """A row of `audit_groups`."""

    audit: str
    group_name: str
    num_candidates: int
    num_kept: int
    random_num_kept: float
    is_below_floor: bool


class AuditContributionRecord(NamedTuple):
    """A row of `audit_contributions`."""

    audit: str
    population: str
    scoring: str
    num_samples: int
    mean: float
    similarity: float
    effective_share: float
    negative_share: float
