"""`curate plan`: what a corpus will take, stage by stage, from a short measured sample."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from curate.catalog.catalog import Catalog
from curate.encoders import make_encoder
from curate.errors import CurateError
from curate.execution import engine
from curate.execution.devices import find_local_devices
from curate.execution.limits import cpu_count
from curate.formats.shard_patterns import expand_patterns
from curate.formatting import format_bytes
from curate.options import Keep, Option, WorkersPerCore, read_parameters, verb
from curate.progress import announce, log
from curate.stages.cluster.kmeans import estimate_memory
from curate.stages.cluster.refinement import group_size
from curate.stages.cluster.stage import NumClusters, auto_k, cluster, default_fit_rows
from curate.stages.embed.inference import plan_encoder
from curate.stages.embed.registration import stat_shard
from curate.stages.embed.stage import DEFAULT_ENCODER, Checkpoint, EncoderSpec
from curate.stages.plan import throughput

_MEAN_FIT_SHARE = 0.5  # of the sample that an iteration of the fit sees: first an eighth, doubling
_SAMPLE_BYTES, _ASSIGNMENT_BYTES, _SCORE_BYTES, _MEMBER_BYTES = 60, 24, 24, 8  # a database row
_CANDIDATE_BYTES = 24  # of memory, in `curate select`
_PROCESS_BYTES = 300 << 20  # of memory, in any of our processes
_EXPORT_BYTES = 1 << 28  # of memory


@dataclass(frozen=True)
class StagePlan:
    """What a stage will take: bytes of memory (of the largest process) and of disk."""

    stage: str
    samples: int
    seconds: float
    memory: int
    disk: int


class CorpusSize(NamedTuple):
    """Samples, bytes and shards of a corpus, the length of its vectors, and the seconds per image
    takes one worker."""

    num_samples: int
    num_bytes: int
    num_shards: int
    dim: int
    seconds_per_image: float


@verb()
def plan(
    catalog: Catalog | str | Path,
    shards: Annotated[
        list[str] | str | None,
        Option("Shards that are to be embedded.", default="what the catalog has"),
    ] = None,
    *,
    samples: Annotated[
        int | None, Option("Plan for this many samples of the same kind.", minimum=1)
    ] = None,
    encoder: EncoderSpec = DEFAULT_ENCODER,
    checkpoint: Checkpoint = None,
    k: NumClusters = "auto",
    keep: Keep = 0.8,
    workers: WorkersPerCore = None,
) -> list[StagePlan]:
    """What embed, cluster, score, select and export will take on the engine in use.

    Of the corpus that the catalog has, or of `shards` by an encoder. The seconds suppose that other
    machines are as fast as this one. The plan is recorded in `runs`, and `curate query plans` shows
    what came of it. Raises CurateError.
    """
    urls = expand_patterns([shards] if isinstance(shards, str) else shards) if shards else []
    num_bytes = _total_bytes(urls)
    catalog = Catalog(catalog).create() if urls else Catalog(catalog)
    announce("plan: measuring how fast this machine is")
    with catalog.temporary_folder() as folder:
        if urls:
            size = _measure_shards(urls, num_bytes, encoder, str(checkpoint or "") or None, folder)
        else:
            size = _measure_catalog(catalog, folder)
        if samples:
            factor = samples / size.num_samples
            size = size._replace(
                num_samples=samples,
                num_bytes=round(size.num_bytes * factor),
                num_shards=math.ceil(size.num_shards * factor),
            )
        auto = auto_k(size.num_samples)
        num_clusters = auto if isinstance(k, str) else min(k, size.num_samples)
        cores = workers or engine.current_engine().count_cores().total
        plans = _plan_stages(size, num_clusters, keep, cores, folder)
    log.info(
        "%s samples, %s in %s shards; vectors of %s numbers, %s clusters; %s cores",
        f"{size.num_samples:,}",
        format_bytes(size.num_bytes),
        f"{size.num_shards:,}",
        f"{size.dim:,}",
        f"{num_clusters:,}",
        cores,
    )
    cluster_defaults = _cluster_defaults()
    log.info(
        "cluster: %s iterations on %s rows, then %s over every row",
        cluster_defaults["iterations"],
        f"{min(default_fit_rows(num_clusters), size.num_samples):,}",
        cluster_defaults["full_iterations"],
    )
    arguments: dict[str, Any] = {
        "samples": size.num_samples,
        "k": num_clusters,
        "keep": keep,
        "cores": cores,
        "stages": [asdict(stage_plan) for stage_plan in plans],
    }
    with catalog.record_run("plan", "plan", arguments):
        pass
    return plans


def _total_bytes(urls: list[str]) -> int:
    """Of all shards; those of unknown size count as the others do."""
    sizes = [stat_shard(url).num_bytes for url in urls]
    known_sizes = [size for size in sizes if size is not None]
    if urls and not known_sizes:
        raise CurateError(
            f"the server of '{urls[0]}' does not say how large its files are: "
            "plan by local copies of some shards, with --samples"
        )
    return round(sum(known_sizes) * len(sizes) / max(len(known_sizes), 1))


def _measure_shards(
    urls: list[str], num_bytes: int, spec: str, checkpoint: str | None, folder: Path
) -> CorpusSize:
    """By the size of all shards, and the first samples of some."""
    sample = throughput.sample_images(urls)
    encoder = make_encoder(spec, checkpoint)
    device, _ = find_local_devices("auto")
    onnx = str(folder / "encoder.onnx")
    encoder_plan = plan_encoder(encoder, spec, checkpoint, device, 1, onnx)
    seconds, dim = throughput.measure_embedding(encoder_plan, sample)
    num_samples = max(round(num_bytes / sample.bytes_per_sample), 1)
    return CorpusSize(num_samples, num_bytes, len(urls), dim, seconds)


def _measure_catalog(catalog: Catalog, folder: Path) -> CorpusSize:
    """By its tables; the speed of its encoder is measured on its shards."""
    with catalog.reading() as connection:
        ((num_samples, num_bytes),) = connection.execute(
            "select count(*), sum(num_bytes)::bigint from samples"
        ).fetchall()
        rows = connection.execute(
            "select url, num_bytes from shards where num_samples > 0 order by shard_id"
        ).fetchall()
        embeddings = connection.execute(
            "select encoder, checkpoint from embeddings order by run_id"
        ).fetchall()
    if not num_samples or not embeddings:
        raise CurateError("the catalog has no samples: name the shards that are to be embedded")
    encoder, checkpoint = embeddings[0]
    shard_sizes = dict(rows)
    total = sum(shard_sizes.values())
    size = _measure_shards(list(shard_sizes), total, encoder, checkpoint, folder)
    return size._replace(num_samples=num_samples, num_bytes=num_bytes)


def _cluster_defaults() -> dict[str, Any]:
    return {name: parameter.default for name, parameter in read_parameters(cluster).items()}


def _plan_stages(
    size: CorpusSize, k: int, keep: float, cores: int, folder: Path
) -> list[StagePlan]:
    n, dim = size.num_samples, size.dim
    defaults = _cluster_defaults()
    assign = throughput.measure_assignment(dim, k)
    read = throughput.measure_vector_reading(dim, folder)
    commit = throughput.measure_commit(folder)
    write = throughput.measure_disk_writes(folder)
    fit_rows = min(default_fit_rows(k), n)
    shard_rows = math.ceil(n / size.num_shards)
    num_groups = math.ceil(n / group_size(n))
    fit_memory, iteration_memory = estimate_memory(fit_rows, shard_rows, dim, k, num_groups)
    # Matrix products were measured with all cores of this machine.
    full_pass = n * (assign * cpu_count() + read) / cores
    fit_seconds = fit_rows * defaults["iterations"] * _MEAN_FIT_SHARE * assign
    centroid_bytes, shard_bytes = 4 * k * dim, 14 * dim * shard_rows
    num_kept = round(keep * n)

    def make_plan(stage: str, samples: int, seconds: float, memory: int, disk: int) -> StagePlan:
        return StagePlan(stage, samples, seconds, _PROCESS_BYTES + memory, disk)

    return [
        make_plan(
            "embed",
            n,
            n * (size.seconds_per_image / cores + commit),
            shard_bytes,
            n * (2 * dim + 8 + _SAMPLE_BYTES),
        ),
        make_plan(
            "cluster",
            n,
            fit_seconds + (defaults["full_iterations"] + 1) * full_pass + n * commit,
            max(fit_memory, iteration_memory),
            n * _ASSIGNMENT_BYTES + centroid_bytes,
        ),
        make_plan(
            "score", n, full_pass + n * commit, shard_bytes + centroid_bytes, n * _SCORE_BYTES
        ),
        make_plan(
            "select",
            n,
            n * (throughput.measure_selection() + keep * commit),
            n * _CANDIDATE_BYTES,
            num_kept * _MEMBER_BYTES,
        ),
        make_plan(
            "export",
            num_kept,
            keep * size.num_bytes * write,
            _EXPORT_BYTES,
            round(keep * size.num_bytes),
        ),
    ]
