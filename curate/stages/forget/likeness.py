"""Samples that look like pictures that are given as files, and a picture of them."""

import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.catalog.samples import image_member
from curate.errors import CurateError, OptionError
from curate.formats.sample_ids import first_sample_id
from curate.formats.vectors import iterate_vectors, read_vectors
from curate.progress import log
from curate.stages.embed.stage import embed, preprocessing_of
from curate.stages.gallery import Cell, ImageLocation, Rows, draw_rows
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.locks import local_tempdir

_BATCH_ROWS = 1 << 14
_PER_ROW, _MAX_DRAWN, _EDGE = 12, 1200, 96


class Likeness(NamedTuple):
    """A sample, and the given picture that it is most like, by its number."""

    sample_id: int
    picture: int
    cosine: float


def find_like(
    catalog: Catalog, pictures: list[str], eps: float, embedding: str | None
) -> list[Likeness]:
    """The samples with a cosine above 1 - eps to one of the pictures, nearest first.

    The pictures are embedded as the corpus was, in a folder that is deleted. Raises CurateError,
    and OptionError for files that cannot be read.
    """
    parent = catalog.require(EmbeddingRecord, embedding)
    wanted = _embed_pictures(parent, pictures)
    found: list[Likeness] = []
    for location in catalog.vector_files(parent.embedding):
        for shard in iterate_vectors(location, _BATCH_ROWS):
            cosines = _normalize(shard.vectors) @ wanted.T
            nearest = cosines.argmax(axis=1)
            best = cosines.max(axis=1)
            found += [
                Likeness(int(shard.sample_ids[row]), int(nearest[row]), float(best[row]))
                for row in np.flatnonzero(best > 1 - eps)
            ]
    return sorted(found, key=lambda likeness: (-likeness.cosine, likeness.sample_id))


def draw_likeness(catalog: Catalog, pictures: list[str], found: list[Likeness]) -> Path:
    """Draw the samples in rows by picture, with their cosines, into figures/; returns the path.

    A forgetting deletes it, as all pictures of the catalog.
    """
    drawn = found[:_MAX_DRAWN]
    with catalog.reading() as connection:
        locations = {
            sample_id: ImageLocation(url, offset, length, image_member(catalog))
            for sample_id, url, offset, length in connection.execute(
                "select sample_id, url, byte_offset, samples.num_bytes from samples "
                "join shards using (shard_id) where sample_id in (select unnest($1::bigint[]))",
                [[likeness.sample_id for likeness in drawn]],
            ).fetchall()
        }
    cells: dict[str, list[Cell | None]] = {}
    for number, picture in enumerate(pictures):
        of_picture = [
            likeness
            for likeness in drawn
            if likeness.picture == number and likeness.sample_id in locations
        ]
        for start in range(0, len(of_picture), _PER_ROW):
            name = Path(picture).name + (f" ({start // _PER_ROW + 1})" if start else "")
            name += f" #{number + 1}" if name in cells else ""
            cells[name] = [
                Cell(locations[likeness.sample_id], f"{likeness.cosine:.3f}")
                for likeness in of_picture[start : start + _PER_ROW]
            ]
    if len(found) > len(drawn):
        log.warning("of %s samples, the %s nearest are drawn", f"{len(found):,}", len(drawn))
    path = catalog.path / "figures" / "forget-like.png"
    with atomic_write(path) as temporary:
        draw_rows(Rows("samples like each picture, with their cosine", cells), _EDGE).save(
            temporary, format="PNG"
        )
    return path


def _embed_pictures(parent: EmbeddingRecord, pictures: list[str]) -> np.ndarray:
    """Unit vectors of the pictures by the embedding's own encoder, float32 [n, dim]."""
    with local_tempdir() as folder:
        shard = folder / "pictures.tar"
        with tarfile.open(shard, "w") as tar:
            for number, picture in enumerate(pictures):
                member = tarfile.TarInfo(f"{number:06d}{Path(picture).suffix.lower()}")
                content = _read_picture(picture)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        inner = Catalog(folder / "catalog")
        preprocessing = preprocessing_of(parent)
        embed(
            inner,
            str(shard),
            encoder=parent.encoder,
            checkpoint=parent.checkpoint,
            decode=preprocessing["decode"],
            workers=1,
            device="cpu",
            name=parent.embedding,
        )
        made = inner.require(EmbeddingRecord, parent.embedding)
        if not preprocessing["captions"] and made.weights_sha256 != parent.weights_sha256:
            raise CurateError(
                f"the weights of {parent.encoder} are not those that '{parent.embedding}' was made "
                "by, so its vectors cannot be compared: give --embedding another, or keys"
            )
        shards = [read_vectors(location) for location in inner.vector_files(parent.embedding)]
    sample_ids = np.concatenate([np.empty(0, np.int64), *(shard.sample_ids for shard in shards)])
    is_there = np.isin(first_sample_id(0) + np.arange(len(pictures)), sample_ids)
    if not is_there.all():
        raise OptionError(f"--like {pictures[int(np.argmin(is_there))]}: it is no image to read")
    return _normalize(shards[0].vectors)


def _read_picture(picture: str) -> bytes:
    try:
        return files.read_bytes(files.resolve(picture))
    except OSError as error:
        raise OptionError(
            f"--like {picture}: it cannot be read ({error.strerror or error})"
        ) from error


def _normalize(vectors: np.ndarray) -> np.ndarray:
    wide = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.maximum(norms, 1e-12))
