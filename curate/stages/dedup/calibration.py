"""`curate dedup --calibrate`: what a threshold finds, and what it takes for copies by mistake.

Copies of some of the catalog's own images are made, embedded by its encoder and compared with what
they were made from; and other images are compared with the nearest one of the whole corpus.
"""

import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate import plotting
from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.catalog.samples import image_member
from curate.distances import l2_normalize
from curate.encoders import make_encoder
from curate.errors import CurateError
from curate.execution import engine
from curate.execution.reporting import no_progress
from curate.execution.types import Resources
from curate.formats.sample_ids import are_members
from curate.formats.vectors import iterate_vectors
from curate.progress import log, progress_bar
from curate.stages.dedup.copies import DISTORTIONS, EmbedCopies, Original
from curate.stages.dedup.neighbours import VectorFiles
from curate.stages.dedup.picture import MAX_IMAGES, CaptionedImage, draw_groups
from curate.stages.embed.inference import EncoderPlan, plan_encoder
from curate.stages.embed.stage import preprocessing_of
from curate.stages.gallery import ImageLocation
from curate.stages.import_vectors.stage import UNKNOWN_ENCODER, is_imported
from curate.storage import files as storage
from curate.storage.atomic import atomic_write
from curate.training.nearest import draw_samples, nearest_distances, read_samples

NUM_COPIED = 500  # images; a share of them has a standard error of 2.2 points at most
DEFAULT_RATE = 0.01
_ORIGINALS_PER_TASK = 20
# Images whose nearest other one is looked for: as many as make 10⁹ comparisons, within these.
_MIN_COMPARED, _MAX_COMPARED, _COMPARISONS = 1_000, 10_000, 10**9
_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # of the table
_MIN_EPS, _MAX_EPS = 1e-6, 1.999
_ROUNDING = 1e-6  # of `nearest_distances`
_COPY_SEED, _COMPARED_SEED = 1, 2
_BATCH_ROWS = 1 << 12  # of a file in memory
_AXIS_RANGE = 1_000  # from the smallest to the largest threshold of the picture
_PAIRS_SHOWN = 20  # on both sides of the threshold


class Calibration(NamedTuple):
    """Distances 1 − cosine: of copies from their originals, float64 [n] sorted by kind of copy, and
    of images from the nearest other one of the corpus, float64 [m] with their ids int64 [m], from
    the nearest on."""

    copies: dict[str, np.ndarray]
    others: np.ndarray
    other_ids: np.ndarray

    def choose_eps(self, rate: float) -> float:
        """The largest threshold below which at most this share of images has another one.

        The nearest pair of all where the images are too few for the share.
        """
        rank = min(int(rate * len(self.others)), len(self.others) - 1)
        # The nearest image that must not count is left out however its distance is rounded.
        return float(np.clip(self.others[rank] - _ROUNDING, _MIN_EPS, _MAX_EPS))

    def false_rate(self, eps: float) -> float:
        """The share of images that have another one nearer than `eps`."""
        return float((self.others < eps).mean())

    def found_shares(self, eps: float) -> dict[str, float]:
        """The share of copies nearer than `eps` to their original, by kind."""
        return {kind: float((distances < eps).mean()) for kind, distances in self.copies.items()}

    def found_share(self, eps: float) -> float:
        """The mean of `found_shares`, in which each kind counts the same."""
        return float(np.mean(list(self.found_shares(eps).values())))


def measure_calibration(
    catalog: Catalog,
    parent: EmbeddingRecord,
    vectors: VectorFiles,
    sample_ids: np.ndarray,
    folder: str,
    workers: int,
) -> Calibration:
    """Measure both kinds of distances among samples, sorted ids int64 [n] of those with vectors.

    Raises CurateError where the catalog's encoder is not known, has other weights now, or where
    images cannot be read.
    """
    if is_imported(parent) and parent.encoder == UNKNOWN_ENCODER:
        raise CurateError(
            f"--calibrate: the vectors of '{parent.embedding}' were imported, and copies of images "
            "have none: import with --encoder SPEC under another --name, or give --eps"
        )
    if len(sample_ids) < 2:
        raise CurateError("--calibrate: two samples at least are needed")
    copied_ids = draw_samples(sample_ids, NUM_COPIED, _COPY_SEED)
    copies = _measure_copies(catalog, parent, vectors, copied_ids, folder, workers)
    num_rows = sum(vectors.rows.values())
    count = min(max(_COMPARISONS // num_rows, _MIN_COMPARED), _MAX_COMPARED)
    compared_ids = draw_samples(sample_ids, count, _COMPARED_SEED)
    with progress_bar("compare with others", 2 * num_rows) as advance:
        (others,) = nearest_distances(vectors.rows, compared_ids, [sample_ids], advance)
    order = np.argsort(others, kind="stable")
    return Calibration(copies, others[order].astype(np.float64), compared_ids[order])


def _measure_copies(
    catalog: Catalog,
    parent: EmbeddingRecord,
    vectors: VectorFiles,
    sample_ids: np.ndarray,
    folder: str,
    workers: int,
) -> dict[str, np.ndarray]:
    """The distances of copies from their originals, by kind, sorted."""
    device, gpus = engine.current_engine().find_devices("auto")
    resources = Resources(len(gpus) or workers, 1, gpus)
    originals = _list_originals(catalog, sample_ids)
    parts = [
        originals[first : first + _ORIGINALS_PER_TASK]
        for first in range(0, len(originals), _ORIGINALS_PER_TASK)
    ]
    task = EmbedCopies(_plan_encoder(parent, device, storage.join(folder, "encoder.onnx")))
    by_sample: dict[int, np.ndarray] = {}
    with progress_bar("embed copies", len(originals)) as advance:
        for part, copies in engine.map_or_raise(task, parts, resources, advance=advance):
            by_sample |= dict(zip((original.sample_id for original in part), copies, strict=True))
    if next(iter(by_sample.values())).shape[1] != parent.dim:
        raise CurateError(
            f"--calibrate: the encoder {parent.encoder} gives vectors of another length than "
            f"those of '{parent.embedding}', {parent.dim}"
        )
    with progress_bar("compare copies", sum(vectors.rows.values())) as advance:
        original_rows = read_samples(vectors.rows, sample_ids, advance)
    copy_rows = np.stack([by_sample[sample_id] for sample_id in sample_ids.tolist()])
    distances = np.empty(copy_rows.shape[1::-1])
    for index in range(len(distances)):
        units = l2_normalize(copy_rows[:, index].astype(np.float32))
        distances[index] = 1 - np.einsum("nd,nd->n", units, original_rows, dtype=np.float64)
    distances = np.sort(np.maximum(distances, 0), axis=1)
    return dict(zip(DISTORTIONS, distances, strict=True))


def _plan_encoder(parent: EmbeddingRecord, device: str, onnx: str) -> EncoderPlan:
    """The encoder as it made the catalog's vectors. Raises CurateError where it is another one."""
    encoder = make_encoder(parent.encoder, parent.checkpoint)
    stored = preprocessing_of(parent)
    has_captions = stored["captions"]  # whose weights are in the checksum too
    is_comparable = not (is_imported(parent) or has_captions)
    if is_comparable and encoder.weights_sha256 != parent.weights_sha256:
        raise CurateError(
            f"--calibrate: the encoder {parent.encoder} has other weights than those that "
            f"'{parent.embedding}' was made with"
        )
    preprocessing = replace(
        encoder.preprocessing, decode=stored["decode"], convert=stored["convert"]
    )
    encoder = replace(encoder, preprocessing=preprocessing)
    return plan_encoder(encoder, parent.encoder, parent.checkpoint, device, 1, onnx)


def _list_originals(catalog: Catalog, sample_ids: np.ndarray) -> list[Original]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select sample_id, url, byte_offset, samples.num_bytes "
            "from samples join shards using (shard_id) "
            "where sample_id in (select unnest(?)) order by sample_id",
            [sample_ids.tolist()],
        ).fetchall()
    image = image_member(catalog)
    return [
        Original(sample_id, url, offset, length, image) for sample_id, url, offset, length in rows
    ]


# -- what is shown ---------------------------------------------------------------------------------


def log_calibration(calibration: Calibration, eps: float) -> None:
    """The table: what several thresholds find, `eps` among them."""
    log.info(
        "calibration: %s copies of %s images, and the nearest other of %s images",
        f"{sum(map(len, calibration.copies.values())):,}",
        f"{len(next(iter(calibration.copies.values()))):,}",
        f"{len(calibration.others):,}",
    )
    thresholds = sorted({*map(calibration.choose_eps, _RATES), eps})
    rows = [
        ("eps", [f"{threshold:.4g}" for threshold in thresholds]),
        ("false matches", [f"{calibration.false_rate(threshold):.2%}" for threshold in thresholds]),
        ("copies found", [f"{calibration.found_share(threshold):.1%}" for threshold in thresholds]),
    ]
    shares = [calibration.found_shares(threshold) for threshold in thresholds]
    rows += [(f"  {kind}", [f"{by_kind[kind]:.1%}" for by_kind in shares]) for kind in DISTORTIONS]
    for name, cells in rows:
        log.info("%-14s%s", name, "".join(f"{cell:>10}" for cell in cells))
    log.info(
        "eps %.4g: %.2f%% of the images have another one that is nearer, which would be taken for "
        "a copy or is one; %.1f%% of the copies are found",
        eps,
        100 * calibration.false_rate(eps),
        100 * calibration.found_share(eps),
    )


def write_curves(path: Path, calibration: Calibration, eps: float) -> None:
    """`path`.png and .svg with both curves, and `path`.csv with their points."""
    everything = np.concatenate([calibration.others, *calibration.copies.values()])
    positive = everything[everything > _MIN_EPS]
    high = float(positive.max()) if len(positive) else 1.0
    low = max(float(positive.min()) if len(positive) else 0.0, high / _AXIS_RANGE)
    thresholds = np.geomspace(low, 1.01 * high, 200)
    others = np.array([calibration.false_rate(threshold) for threshold in thresholds])
    copies = [calibration.found_shares(threshold) for threshold in thresholds]
    with plotting.new_figure(path, 8.5, 6.4, nrows=2, sharex=True) as (figure, axes):
        families = list(dict.fromkeys(kind.partition("-")[0] for kind in DISTORTIONS))
        drawn: set[str] = set()
        for kind in DISTORTIONS:
            family = kind.partition("-")[0]
            axes[0].plot(
                thresholds,
                [100 * by_kind[kind] for by_kind in copies],
                lw=1.2,
                ls="--" if family in drawn else "-",  # the stronger of two
                color=plotting.COLOURS[families.index(family)],
                label=kind,
            )
            drawn.add(family)
        means = [100 * np.mean(list(by_kind.values())) for by_kind in copies]
        axes[0].plot(thresholds, means, lw=2.5, color="black", label="mean")
        is_seen = others > 0
        axes[1].plot(thresholds[is_seen], 100 * others[is_seen], color=plotting.HARD, lw=2)
        axes[1].axhline(100 * calibration.false_rate(eps), color="black", lw=0.6, ls=":")
        for panel in axes:
            panel.axvline(eps, color="black", lw=1, ls="--")
        plotting.log_scale(axes[1])
        plotting.label_axes(axes[0], "", "% of copies found", "copies and their originals")
        plotting.label_axes(
            axes[1],
            f"eps: the threshold of 1 − cosine; dashed: {eps:.4g}",
            "% with another image as near",
            "different images, and true copies among them",
        )
        axes[0].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
        plotting.caption(
            figure,
            f"{len(calibration.others):,} images with the nearest other one of the corpus; "
            f"{len(next(iter(calibration.copies.values()))):,} copies of each kind",
        )
    with (
        atomic_write(path.with_name(f"{path.name}.csv")) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["eps", "false_matches", *DISTORTIONS])
        for threshold, share, found in zip(thresholds, others, copies, strict=True):
            values = (threshold, share, *found.values())
            writer.writerow([f"{value:.6g}" for value in values])


class NearestPair(NamedTuple):
    """Ids of an image and of the nearest other one of the corpus, and 1 − their cosine."""

    sample_id: int
    other_id: int
    distance: float

    def is_reverse(self, pair: "NearestPair") -> bool:
        """Whether it is the same pair from the other side."""
        return (self.sample_id, self.other_id) == (pair.other_id, pair.sample_id)


def find_nearest_pairs(
    vectors: VectorFiles, sample_ids: np.ndarray, calibration: Calibration, ranks: np.ndarray
) -> list[NearestPair]:
    """The pairs behind some of `calibration.others`, by their ranks int64 [p], in one pass.

    `sample_ids`, sorted int64 [n], are those of the corpus.
    """
    own_ids = calibration.other_ids[ranks]
    order = np.argsort(own_ids)
    queries = read_samples(vectors.rows, own_ids[order], no_progress)[np.argsort(order)]
    best, other_ids = np.full(len(queries), -np.inf), np.zeros(len(queries), np.int64)
    for file in vectors.rows:
        for batch in iterate_vectors(file, _BATCH_ROWS):
            is_used = are_members(batch.sample_ids, sample_ids)
            ids = batch.sample_ids[is_used]
            if not len(ids):
                continue
            cosines = l2_normalize(batch.vectors[is_used]) @ queries.T
            cosines[ids[:, None] == own_ids] = -np.inf
            rows, columns = cosines.argmax(axis=0), np.arange(len(queries))
            nearest = cosines[rows, columns]
            is_nearer = nearest > best
            best[is_nearer], other_ids[is_nearer] = nearest[is_nearer], ids[rows[is_nearer]]
    pairs = zip(own_ids.tolist(), other_ids.tolist(), calibration.others[ranks], strict=True)
    return [NearestPair(own, other, float(distance)) for own, other, distance in pairs]


def draw_nearest_pairs(
    path: Path,
    catalog: Catalog,
    vectors: VectorFiles,
    sample_ids: np.ndarray,
    calibration: Calibration,
    eps: float,
) -> None:
    """A PNG of images with their nearest other ones, around the threshold `eps`.

    Whether they are copies or different images is for people to see. Raises CurateError.
    """
    boundary = int(np.searchsorted(calibration.others, eps))
    ranks = np.arange(
        max(boundary - _PAIRS_SHOWN, 0), min(boundary + _PAIRS_SHOWN, len(calibration.others))
    )
    pairs = find_nearest_pairs(vectors, sample_ids, calibration, ranks)
    ids = np.unique([(pair.sample_id, pair.other_id) for pair in pairs])
    places = {
        original.sample_id: ImageLocation(*original[1:])
        for original in _list_originals(catalog, ids)
    }
    rows: list[tuple[str, list[CaptionedImage]]] = []
    pairs_per_row = MAX_IMAGES // 2
    for name, is_below in (("below", True), ("above", False)):
        images: list[CaptionedImage] = []
        for pair in pairs:
            is_repeated = any(pair.is_reverse(other) for other in pairs[: pairs.index(pair)])
            if (pair.distance < eps) == is_below and not is_repeated:
                images.append(CaptionedImage(places[pair.sample_id], f"{pair.distance:.4f}"))
                images.append(CaptionedImage(places[pair.other_id], ""))
        rows += [
            (name, images[first : first + 2 * pairs_per_row])
            for first in range(0, len(images), 2 * pairs_per_row)
        ]
    draw_groups(path, f"images and their nearest other ones, around eps {eps:.4g}", rows)
