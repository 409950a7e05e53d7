"""Image models from torchvision and timm, trained from scratch on the corpus' own images."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from curate.errors import CurateError
from curate.models import Model, model

if TYPE_CHECKING:
    import torch


@model
def resnet18() -> Model:
    """ResNet-18 at 224 pixels, from scratch (torchvision)."""
    return _resnet("resnet18")


@model
def resnet50() -> Model:
    """ResNet-50 at 224 pixels, from scratch (torchvision), the paper's model for ImageNet."""
    return _resnet("resnet50")


@model
def timm(variant: str) -> Model:
    """timm:NAME, any model of timm, from scratch, at its own input size; timm:NAME@SIZE at another."""
    import timm as library

    name, at, size = variant.partition("@")
    if not library.is_model(name) or (at and not size.isdecimal()):
        raise CurateError(f"timm has no model '{variant}': write timm:NAME or timm:NAME@SIZE, NAME from timm.list_models()")
    default = library.get_pretrained_cfg(name)
    edge = int(size) if size else int(default.input_size[-1] if default else 224)

    def build(channels: int) -> "tuple[torch.nn.Module, int]":
        body = library.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
        return body, int(body.num_features)

    return _vision(build, edge)


def _resnet(name: str) -> Model:
    def build(channels: int) -> "tuple[torch.nn.Module, int]":
        import torchvision
        from torch import nn

        body = torchvision.models.get_model(name, weights=None)
        features = int(body.fc.in_features)
        body.fc = nn.Identity()
        return body, features

    return _vision(build, 224)


def _vision(build: "Callable[[int], tuple[torch.nn.Module, int]]", edge: int) -> Model:
    return Model(build, edge, batch=128, epochs=30, learning_rate=2e-3, weight_decay=0.05, label_smoothing=0.1, stack=1,
                 on_subsets={"epochs": 60, "label_smoothing": 0.0})  # fmt: skip
