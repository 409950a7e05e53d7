"""A linear head on CIFAR-10, trained from curate.stream and from exported shards: the same losses.

python benchmarks/stream_head.py [FOLDER OF SHARDS]
"""

import io
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from bench_stream import DATA
from PIL import Image

import curate

NUM_SHARDS, BATCH, EPOCHS = 4, 100, 3

Samples = list[tuple[torch.Tensor, int]]


def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"), np.float32)
    return torch.from_numpy(pixels.reshape(-1) / 255 - 0.5), int(sample["cls"])


def collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*map(decode, samples), strict=True)
    return torch.stack(images), torch.tensor(labels)


def train(epochs: Iterable[Iterable[dict[str, Any]]]) -> list[float]:
    """The loss of the last batch of every epoch."""
    torch.manual_seed(0)
    head = torch.nn.Linear(3 * 32 * 32, 10)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for samples in epochs:
        loader = torch.utils.data.DataLoader(samples, batch_size=BATCH, collate_fn=collate)
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(head(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    corpus = Path(sys.argv[1] if len(sys.argv) > 1 else DATA / "cifar10").resolve()
    shards = sorted(map(str, corpus.glob("*-train-*.tar")))[:NUM_SHARDS]
    with tempfile.TemporaryDirectory() as name:
        catalog, out = Path(name) / "catalog", Path(name) / "out"
        curate.embed(catalog, shards, encoder="pixels@8", workers=1)
        curate.cluster(catalog, k=20)
        curate.score(catalog, "ssl_prototypes")
        selection = curate.select(catalog, keep=0.5)
        curate.export(catalog, selection, out)
        exported = webdataset.WebDataset(sorted(map(str, out.glob("*.tar"))), shardshuffle=False)
        stream = curate.stream(catalog, selection)
        losses = train([stream] * EPOCHS), train([exported] * EPOCHS)
        print(f"{selection}: {len(stream):,} images, {EPOCHS} epochs of a linear head")
        print("| epoch | loss from curate.stream | loss from the exported shards | equal |")
        print("|---|---|---|---|")
        for epoch, (ours, theirs) in enumerate(zip(*losses, strict=True)):
            print(f"| {epoch} | {ours!r} | {theirs!r} | {'yes' if ours == theirs else 'no'} |")


if __name__ == "__main__":
    main()
