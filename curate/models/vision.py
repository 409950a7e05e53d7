"""Image models from torchvision and timm, trained from scratch on the corpus' own images."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from curate.errors import OptionError
from curate.models import Model, model

if TYPE_CHECKING:
    import torch


@model
def resnet18() -> Model:
    """ResNet-18 at 224 pixels, from scratch (torchvision)."""
    return _make_resnet("resnet18")


@model
def resnet50() -> Model:
    """ResNet-50 at 224 pixels, from scratch (torchvision), the paper's model for ImageNet."""
    return _make_resnet("resnet50")


@model
def timm(variant: str) -> Model:
    """timm:NAME, any model of timm, from scratch, at its own input size or NAME@SIZE."""
    import timm as library

    name, at, size = variant.partition("@")
    if not library.is_model(name) or (at and not size.isdecimal()):
        raise OptionError(
            f"timm has no model '{variant}': write timm:NAME or timm:NAME@SIZE, "
            "NAME from timm.list_models()"
        )
    config = library.get_pretrained_cfg(name)
    default_size = int(config.input_size[-1]) if config else 224

    def build(channels: int) -> "tuple[torch.nn.Module, int]":
        body = library.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
        return body, int(body.num_features)

    return _image_model(build, int(size) if size else default_size)


def _make_resnet(name: str) -> Model:
    def build(channels: int) -> "tuple[torch.nn.Module, int]":
        import torchvision
        from torch import nn

        body = torchvision.models.get_model(name, weights=None)
        num_features = int(body.fc.in_features)
        body.fc = nn.Identity()
        return body, num_features

    return _image_model(build, 224)


def _image_model(build: "Callable[[int], tuple[torch.nn.Module, int]]", image_size: int) -> Model:
    return Model(
        build,
        image_size,
        batch_size=128,
        epochs=30,
        learning_rate=2e-3,
        weight_decay=0.05,
        label_smoothing=0.1,
        stack_size=1,
        on_subsets={"epochs": 60, "label_smoothing": 0.0},
    )
