"""The corpus' images for a training loop: read through the catalog's byte offsets, never from a second copy of the corpus.

Small images are decoded once into a temporary file of bytes; where that would be too large, every batch
is decoded when its turn comes, by threads, ahead of the step that needs it.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from curate import engine, shards
from curate.engine import Advance, Resources
from curate.errors import CurateError
from curate.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from curate.places import Places, image_at, image_in

CACHE_BYTES = 4 << 30
_AHEAD = 4  # batches that threads decode ahead


@dataclass(frozen=True)
class FillCache:
    """The task: decode the samples [start, stop) of one shard into their rows of the cache."""

    places: Places
    edge: int
    path: Path

    def __call__(self, rows: tuple[int, int]) -> None:
        cache = np.load(self.path, mmap_mode="r+", allow_pickle=False)
        url = self.places.urls[self.places.owners[rows[0]]]
        with shards.open_shard(url) as stream:
            for row in range(*rows):
                offset, length = int(self.places.offsets[row]), int(self.places.lengths[row])
                stream.seek(offset)
                cache[row] = image_in(stream.read(length), url, offset, Preprocessing(self.edge, self.edge))
        engine.tick(rows[1] - rows[0])


def fill(places: Places, edge: int, path: Path, resources: Resources, advance: Advance) -> None:
    """Decode all images into one .npy file, uint8 [n, edge, edge, 3]. Raises CurateError."""
    shape = (len(places.offsets), edge, edge, 3)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
    bounds = [0, *(np.flatnonzero(np.diff(places.owners)) + 1).tolist(), len(places.owners)]
    ranges = [pair for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    for outcome in engine.map(FillCache(places, edge, path), ranges, resources, advance=advance):
        if outcome.error:
            raise CurateError(outcome.error)


class Cached:
    """Images from the cache."""

    def __init__(self, path: Path) -> None:
        self.pixels = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        self.channels = 3

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, orders: list[torch.Tensor], augmented: bool) -> Iterator[torch.Tensor]:
        """For each order [1, b] the normalised images [1, b, 3, edge, edge]; see `augment`."""
        for places in orders:
            yield _finished(self.pixels[places[0]], augmented)


class Streamed:
    """Images decoded batch by batch from the shards, by threads."""

    def __init__(self, places: Places, edge: int) -> None:
        self.places, self.edge, self.channels = places, edge, 3

    def __len__(self) -> int:
        return len(self.places.offsets)

    def batches(self, orders: list[torch.Tensor], augmented: bool) -> Iterator[torch.Tensor]:
        """See Cached."""
        with ThreadPoolExecutor(2 * engine.cores()) as pool:
            waiting: deque[list[Future[np.ndarray]]] = deque()
            todo = iter(orders)
            for places in todo:
                waiting.append([pool.submit(self._image, int(place)) for place in places[0]])
                if len(waiting) == _AHEAD:
                    break
            while waiting:
                done = waiting.popleft()
                yield _finished(torch.from_numpy(np.stack([future.result() for future in done])), augmented)
                for places in todo:
                    waiting.append([pool.submit(self._image, int(place)) for place in places[0]])
                    break

    def _image(self, row: int) -> np.ndarray:
        url = self.places.urls[self.places.owners[row]]
        how = Preprocessing(self.edge, self.edge)
        return image_at(url, int(self.places.offsets[row]), int(self.places.lengths[row]), how)


def _finished(pixels: torch.Tensor, augmented: bool) -> torch.Tensor:
    """uint8 [b, edge, edge, 3] -> normalised float32 [1, b, 3, edge, edge], channels last in memory."""
    if augmented:
        pixels = augment(pixels)
    mean, std = 255 * torch.tensor(IMAGENET_MEAN), 255 * torch.tensor(IMAGENET_STD)
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)[None]


def augment(pixels: torch.Tensor) -> torch.Tensor:
    """Flip half of the images, and shift the batch by up to a sixteenth of its edge: uint8 [b, edge, edge, 3] -> the same."""
    batch, edge = pixels.shape[:2]
    pixels = torch.where((torch.rand(batch) < 0.5)[:, None, None, None], pixels.flip(2), pixels)
    pad = edge // 16
    down, right = (int(shift) for shift in torch.randint(-pad, pad + 1, (2,)))
    rows, columns = (_mirrored(torch.arange(edge) + shift, edge) for shift in (down, right))
    return pixels[:, rows][:, :, columns]


def _mirrored(places: torch.Tensor, edge: int) -> torch.Tensor:
    """Places beyond an edge are those as far inside it."""
    places = places.abs()
    return torch.where(places < edge, places, 2 * (edge - 1) - places)
