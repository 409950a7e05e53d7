"""Pretrained encoders with a new last layer, all of it trained: fine-tuning.

Fig. 4A of Sorscher et al. 2022.
"""

import copy
import functools
from typing import TYPE_CHECKING

from curate.encoders import Encoder, check_spec, make_encoder
from curate.errors import OptionError
from curate.formats.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from curate.models import Model, model

if TYPE_CHECKING:
    import torch


@model
def finetune(variant: str) -> Model:
    """finetune:ENCODER, any network of `curate list encoders`, as efficientnet_lite0@96."""
    image_size = _load_encoder(variant).preprocessing.size

    def build(channels: int) -> "tuple[torch.nn.Module, int]":
        import torch

        encoder = _load_encoder(variant)
        network = copy.deepcopy(encoder.network)
        assert isinstance(network, torch.nn.Module)  # noqa: S101 - checked in _load_encoder
        renormalize = _renormalization(encoder.preprocessing)
        body = torch.nn.Sequential(renormalize, network.requires_grad_(True))
        with torch.no_grad():
            images = torch.zeros(1, channels, image_size, image_size)
            num_features = body.eval()(images).shape[1]
        return body, int(num_features)

    return Model(
        build,
        image_size,
        batch_size=64,
        epochs=5,
        learning_rate=3e-4,
        weight_decay=0.05,
        label_smoothing=0.1,
        stack_size=1,
        on_subsets={"epochs": 10, "label_smoothing": 0.0},
    )


@functools.lru_cache(maxsize=2)
def _load_encoder(spec: str) -> Encoder:
    """The encoder, loaded once a process. Raises OptionError for one that is no torch network."""
    import torch

    check_spec(spec)
    encoder = make_encoder(spec)
    if not isinstance(encoder.network, torch.nn.Module):
        raise OptionError(
            f"'finetune:{spec}': that encoder is no network of torch, so it cannot be trained"
        )
    return encoder


def _renormalization(preprocessing: Preprocessing) -> "torch.nn.Module":
    """A layer from images normalised for training (training/image_data.py) to the encoder's own."""
    import torch

    class Renormalize(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            mean, std, own_mean, own_std = (
                torch.tensor(values).reshape(3, 1, 1)
                for values in (IMAGENET_MEAN, IMAGENET_STD, preprocessing.mean, preprocessing.std)
            )
            self.register_buffer("scale", std / own_std)
            self.register_buffer("shift", (mean - own_mean) / own_std)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images * self.scale + self.shift  # type: ignore[operator]

    return Renormalize()
