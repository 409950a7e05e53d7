"""Pretrained encoders with a new last layer, all of it trained: fine-tuning (Fig. 4A of Sorscher et al. 2022)."""

import copy
import functools
from typing import TYPE_CHECKING

from curate import encoders
from curate.encoders import Encoder
from curate.errors import CurateError
from curate.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from curate.models import Model, model

if TYPE_CHECKING:
    import torch


@model
def finetune(variant: str) -> Model:
    """finetune:ENCODER, any network of `curate list encoders`, such as finetune:efficientnet_lite0@96."""
    edge = _encoder(variant).preprocessing.size

    def build(channels: int) -> "tuple[torch.nn.Module, int]":
        import torch

        pretrained = _encoder(variant)
        network = copy.deepcopy(pretrained.network)
        assert isinstance(network, torch.nn.Module)  # noqa: S101 - seen to in _encoder
        body = torch.nn.Sequential(_as_pretrained(pretrained.preprocessing), network.requires_grad_(True))
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, channels, edge, edge)).shape[1]
        return body, int(features)

    return Model(build, edge, batch=64, epochs=5, learning_rate=3e-4, weight_decay=0.05, label_smoothing=0.1, stack=1,
                 on_subsets={"epochs": 10, "label_smoothing": 0.0})  # fmt: skip


@functools.lru_cache(maxsize=2)
def _encoder(variant: str) -> Encoder:
    """The encoder, loaded once a process. Raises CurateError for one that is no network of torch."""
    import torch

    encoders.check(variant)
    made = encoders.make(variant)
    if not isinstance(made.network, torch.nn.Module):
        raise CurateError(f"'finetune:{variant}': that encoder is no network of torch, so it cannot be trained")
    return made


def _as_pretrained(how: Preprocessing) -> "torch.nn.Module":
    """A layer that takes images normalised for training (see engine.pixels) to what the encoder was pretrained with."""
    import torch

    class Renormalise(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            mean, std, own_mean, own_std = (
                torch.tensor(one).reshape(3, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD, how.mean, how.std)
            )
            self.register_buffer("scale", std / own_std)
            self.register_buffer("shift", (mean - own_mean) / own_std)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images * self.scale + self.shift  # type: ignore[operator]

    return Renormalise()
