"""A head on CIFAR-10 learns the same from the stream and from exported shards."""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from conftest import write_shard
from PIL import Image

import curate

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = [np.asarray(Image.open(io.BytesIO(sample["jpg"])), np.float32) for sample in samples]
    pixels = torch.from_numpy(np.stack(images)).reshape(len(samples), -1) / 255 - 0.5
    return pixels, torch.tensor([int(sample["cls"]) for sample in samples])


def train(samples: Iterable[dict[str, Any]]) -> list[float]:
    torch.manual_seed(0)
    head = torch.nn.Linear(3 * 32 * 32, 10)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05)
    losses = []
    for images, labels in torch.utils.data.DataLoader(samples, batch_size=50, collate_fn=collate):
        loss = torch.nn.functional.cross_entropy(head(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_losses_are_the_same_to_the_last_digit(data, tmp_path):
    source = webdataset.WebDataset(
        str(data / "cifar10" / "cifar10-train-000.tar"), shardshuffle=False
    )
    samples = [
        (sample["__key__"], {"jpg": sample["jpg"], "cls": sample["cls"]})
        for sample in itertools.islice(source, 300)
    ]
    shard = write_shard(tmp_path / "in" / "first.tar", samples)
    curate.embed(tmp_path / "catalog", str(shard), encoder="pixels@8", workers=1)
    curate.select(tmp_path / "catalog", keep=1 / 3, strategy="random", name="third")
    out = Path(curate.export(tmp_path / "catalog", "third", tmp_path / "out"))
    losses = train(curate.stream(tmp_path / "catalog", "third"))
    assert losses == train(webdataset.WebDataset(str(out / shard.name), shardshuffle=False))
    assert len(losses) == 2
    assert losses[-1] < losses[0]
