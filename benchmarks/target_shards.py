"""Shards for a target set: some images of three of CIFAR-10's classes, and test images of these
classes and of the others apart, 1,500 of each.

    python benchmarks/target_shards.py ../shared/data/cifar10 curated-target/shards

writes target.tar, 200 images from the last shard for training, which must then be no part of the
corpus; test-target.tar and test-others.tar. docs/metrics.md has what is measured with them.
"""

import argparse
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import webdataset

CLASSES = ("2", "3", "4")  # bird, cat, deer
NUM_TARGETS, NUM_TESTS = 200, 1500


def read_samples(shards: Iterable[Path]) -> Iterator[dict[str, bytes]]:
    """The samples of shards, in order, as the bytes of their members."""
    urls = [str(shard) for shard in sorted(shards)]
    yield from webdataset.WebDataset(urls, shardshuffle=False)


def write_shard(path: Path, samples: Iterable[dict[str, bytes]]) -> None:
    """Write samples as they are, and print how many."""
    count = 0
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            members = {name: data for name, data in sample.items() if name[:2] != "__"}
            writer.write({"__key__": sample["__key__"], **members})
            count += 1
    print(f"{path}: {count:,} images")


def is_target(sample: dict[str, bytes]) -> bool:
    return sample["cls"].decode().strip() in CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("cifar10", type=Path, help="folder with the shards of CIFAR-10")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    last_shard = max(arguments.cifar10.glob("cifar10-train-*.tar"))
    targets = filter(is_target, read_samples([last_shard]))
    write_shard(arguments.out / "target.tar", itertools.islice(targets, NUM_TARGETS))
    for name, keep in (("target", is_target), ("others", lambda sample: not is_target(sample))):
        tests = read_samples(arguments.cifar10.glob("cifar10-test-*.tar"))
        tests = itertools.islice(filter(keep, tests), NUM_TESTS)
        write_shard(arguments.out / f"test-{name}.tar", tests)


if __name__ == "__main__":
    main()
