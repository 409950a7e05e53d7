"""The folder that a stage fills for its training tasks: its writer and its reader.

ids.npy and labels.npy int64 [n]; rows.npy float16 [n, d] for heads; locations.npz and, for small
images, pixels-SIZE.npy for models of images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.execution.types import ReportProgress, Resources
from curate.formats.sample_locations import SampleLocations
from curate.models import Model
from curate.training.image_data import (
    CACHE_BYTES,
    CachedImages,
    StreamedImages,
    write_image_cache,
)
from curate.training.loop import TrainingData, VectorData
from curate.training.pca import Reduction, write_reduced


@dataclass(frozen=True)
class TrainingInputs:
    """What models read. Arrays are mapped into memory, not loaded."""

    folder: Path

    @property
    def sample_ids(self) -> np.ndarray:
        return _load(self.folder / "ids.npy")

    @property
    def labels(self) -> np.ndarray:
        """Class numbers int64 [n], −1 without a label."""
        return _load(self.folder / "labels.npy")

    @property
    def rows(self) -> np.ndarray:
        """Reduced vectors, float16 [n, d]."""
        return _load(self.folder / "rows.npy")

    def data_for(self, model: Model) -> TrainingData:
        """What the model reads: vectors or images."""
        if not model.image_size:
            return VectorData(self.rows)
        cache = self._image_cache(model.image_size)
        if cache.is_file():
            return CachedImages(cache)
        locations = SampleLocations.load(self.folder / "locations.npz")
        return StreamedImages(locations, model.image_size)

    def write_samples(self, sample_ids: np.ndarray, labels: np.ndarray) -> None:
        """Start a new folder with ids and labels, int64 [n]."""
        self.folder.mkdir()
        np.save(self.folder / "ids.npy", sample_ids)
        np.save(self.folder / "labels.npy", labels)

    def write_rows(
        self, files: dict[str, int], reduction: Reduction, advance: ReportProgress
    ) -> None:
        """Add the reduced vectors."""
        write_reduced(files, self.sample_ids, reduction, self.folder / "rows.npy", advance)

    def write_locations(self, locations: SampleLocations) -> None:
        """Add where the images are."""
        locations.save(self.folder / "locations.npz")

    def can_cache_images(self, image_size: int) -> bool:
        """Whether all decoded images together are small enough for a temporary file."""
        return len(self.sample_ids) * image_size * image_size * 3 <= CACHE_BYTES

    def write_images(
        self,
        locations: SampleLocations,
        image_size: int,
        resources: Resources,
        advance: ReportProgress,
    ) -> None:
        """Add the decoded images."""
        path = self._image_cache(image_size)
        write_image_cache(locations, image_size, path, resources, advance)

    def _image_cache(self, image_size: int) -> Path:
        return self.folder / f"pixels-{image_size}.npy"


def _load(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
