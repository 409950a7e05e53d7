"""The corpus' images for a training loop, read at the catalog's byte offsets.

Small images are decoded once into a temporary file; where that would be too large, every batch is
decoded when its turn comes, by threads, ahead of the step that needs it.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from curate.execution import engine
from curate.execution.limits import cpu_count
from curate.execution.reporting import report_progress
from curate.execution.types import ReportProgress, Resources
from curate.formats.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from curate.formats.sample_locations import SampleLocations, decode_sample_image, read_image
from curate.storage.files import open_binary
from curate.storage.mapped import create_array

CACHE_BYTES = 4 << 30
_PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class FillCache:
    """The task: decode the samples [start, stop) of one shard into their rows of the cache."""

    locations: SampleLocations
    image_size: int
    path: Path

    modules: ClassVar[tuple[str, ...]] = ("torch",)  # see processes.child_context

    def __call__(self, rows: tuple[int, int]) -> None:
        cache = np.load(self.path, mmap_mode="r+", allow_pickle=False)
        url = self.locations.urls[self.locations.url_indices[rows[0]]]
        preprocessing = _preprocessing(self.image_size)
        with open_binary(url) as stream:
            for row in range(*rows):
                offset, length = self.locations.offsets[row], self.locations.lengths[row]
                stream.seek(int(offset))
                sample = stream.read(int(length))
                cache[row] = decode_sample_image(
                    sample, url, int(offset), preprocessing, self.locations.image
                )
        report_progress(rows[1] - rows[0])


def write_image_cache(
    locations: SampleLocations,
    image_size: int,
    path: Path,
    resources: Resources,
    advance: ReportProgress,
) -> None:
    """Decode all images into one .npy file, uint8 [n, size, size, 3]. Raises CurateError."""
    count = len(locations.offsets)
    shape = (count, image_size, image_size, 3)
    create_array(path, np.uint8, shape)
    shard_starts = np.flatnonzero(np.diff(locations.url_indices)) + 1
    bounds = itertools.pairwise([0, *shard_starts.tolist(), count])
    ranges = [(start, stop) for start, stop in bounds if start < stop]
    task = FillCache(locations, image_size, path)
    for _ in engine.map_or_raise(task, ranges, resources, advance=advance):
        pass


class CachedImages:
    """Images from the cache."""

    def __init__(self, path: Path) -> None:
        self.pixels = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        self.channels = 3

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(
        self, orders: list[torch.Tensor], augmented: bool, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """For row indices [1, b] each, normalised images [1, b, 3, size, size]; see `augment`."""
        for row_indices in orders:
            yield _to_inputs(self.pixels[row_indices[0]], augmented, device)


class StreamedImages:
    """Images decoded batch by batch from the shards, by threads."""

    def __init__(self, locations: SampleLocations, image_size: int) -> None:
        self.locations, self.channels = locations, 3
        self._preprocessing = _preprocessing(image_size)

    def __len__(self) -> int:
        return len(self.locations.offsets)

    def batches(
        self, orders: list[torch.Tensor], augmented: bool, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """See CachedImages."""
        with ThreadPoolExecutor(2 * cpu_count()) as pool:
            remaining = iter(orders)
            pending: deque[list[Future[np.ndarray]]] = deque()

            def submit(count: int) -> None:
                for row_indices in itertools.islice(remaining, count):
                    pending.append([pool.submit(self._read, int(row)) for row in row_indices[0]])

            submit(_PREFETCHED_BATCHES)
            while pending:
                images = [future.result() for future in pending.popleft()]
                yield _to_inputs(torch.from_numpy(np.stack(images)), augmented, device)
                submit(1)

    def _read(self, row: int) -> np.ndarray:
        url = self.locations.urls[self.locations.url_indices[row]]
        offset, length = int(self.locations.offsets[row]), int(self.locations.lengths[row])
        return read_image(url, offset, length, self._preprocessing, self.locations.image)


def _preprocessing(image_size: int) -> Preprocessing:
    return Preprocessing(image_size, image_size)


def _to_inputs(pixels: torch.Tensor, augmented: bool, device: torch.device) -> torch.Tensor:
    """uint8 [b, size, size, 3] -> normalised float32 [1, b, 3, size, size], channels last.

    Bytes go to the device, which has a quarter of the traffic then, and all of the arithmetic.
    """
    pixels = pixels.to(device, non_blocking=True)
    if augmented:
        pixels = augment(pixels)
    mean, std = (255 * torch.tensor(values).to(device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)[None]


def augment(pixels: torch.Tensor) -> torch.Tensor:
    """Flip half of the images, and shift the batch by up to a sixteenth of its edge.

    uint8 [b, size, size, 3] -> the same. Random numbers are drawn on the CPU.
    """
    batch_size, image_size = pixels.shape[:2]
    is_flipped = (torch.rand(batch_size) < 0.5)[:, None, None, None]
    pixels = torch.where(is_flipped.to(pixels.device), pixels.flip(2), pixels)
    pad = image_size // 16
    down, right = (int(shift) for shift in torch.randint(-pad, pad + 1, (2,)))
    positions = torch.arange(image_size, device=pixels.device)
    rows, columns = _reflect(positions + down, image_size), _reflect(positions + right, image_size)
    return pixels[:, rows][:, :, columns]


def _reflect(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Indices beyond an edge become those as far inside it."""
    indices = indices.abs()
    return torch.where(indices < size, indices, 2 * (size - 1) - indices)
