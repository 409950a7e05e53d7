"""Write distorted copies of test shards: grey, blurred and noisy images under the same keys.

    python benchmarks/distort.py distorted ../shared/data/cifar10/cifar10-test-*.tar

makes distorted/grey-000.tar, distorted/blur-000.tar, distorted/noise-000.tar and so on, which test
what was trained on clean images elsewhere (`curate run paper/appendix_k`). The same shards give the
same copies.
"""

import argparse
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter


def grey(image: Image.Image, seed: int) -> Image.Image:
    return image.convert("L").convert("RGB")


def blur(image: Image.Image, seed: int) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 32))


def noise(image: Image.Image, seed: int) -> Image.Image:
    """Normal noise with a standard deviation of a tenth of the range."""
    pixels = np.asarray(image, np.float32)
    pixels += np.random.default_rng(seed).normal(0, 25.5, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


DISTORTIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "grey": grey,
    "blur": blur,
    "noise": noise,
}
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("out", type=Path, help="folder for the copies")
    parser.add_argument("shards", nargs="+", type=Path, help="tar files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, distort in DISTORTIONS.items():
        for index, shard in enumerate(arguments.shards):
            target = arguments.out / f"{name}-{index:03d}.tar"
            print(f"{target}: {copy_shard(shard, target, distort):,} images")


def copy_shard(
    source: Path, target: Path, distort: Callable[[Image.Image, int], Image.Image]
) -> int:
    """Copy a tar with its images distorted, as PNG; returns how many there were."""
    num_images = 0
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            file = old.extractfile(member)
            if file is None:
                continue
            data, path = file.read(), Path(member.name)
            if path.suffix.lower() in IMAGE_EXTENSIONS:
                with Image.open(io.BytesIO(data)) as image:
                    distorted = distort(image.convert("RGB"), zlib.crc32(data))
                buffer = io.BytesIO()
                distorted.save(buffer, format="PNG")
                data, path = buffer.getvalue(), path.with_suffix(".png")
                num_images += 1
            copied = tarfile.TarInfo(str(path))
            copied.size = len(data)
            new.addfile(copied, io.BytesIO(data))
    return num_images


if __name__ == "__main__":
    main()
