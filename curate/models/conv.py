"""A small convolutional network for images of up to 64 pixels, made for accuracy per CPU second.

What was measured on CIFAR-10: a stem that halves the edge at once, widths of 40 and 80, pooling
before normalisation, and first filters that see edges and colours (numbers: docs/metrics.md).
"""

from typing import TYPE_CHECKING

from curate.errors import OptionError
from curate.models import Model, model

if TYPE_CHECKING:
    import torch
    from torch import nn

_SIZES = ("16", "32", "48", "64")


@model
def conv(variant: str = "32") -> Model:
    """A small residual network for images of 32 pixels; conv:64 for larger images."""
    if variant not in _SIZES:
        raise OptionError(
            f"'conv:{variant}': the edge of the images is one of {', '.join(_SIZES)} pixels"
        )
    return Model(
        _body,
        image_size=int(variant),
        batch_size=64,
        epochs=10,
        learning_rate=0.01,
        weight_decay=0.05,
        label_smoothing=0.1,
        stack_size=1,
        on_subsets={"epochs": 30, "label_smoothing": 0.0},
    )


def _body(channels: int, stem: int = 24, width: int = 40) -> "tuple[torch.nn.Module, int]":
    from torch import nn

    first = nn.Conv2d(channels, stem, 2, stride=2, bias=False)
    _init_edge_and_colour_filters(first)
    layers = [
        first,
        nn.BatchNorm2d(stem),
        nn.ReLU(inplace=True),
        *_pooled_convolution(stem, width),
        _residual_block(width),
        *_pooled_convolution(width, 2 * width),
        _residual_block(2 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers), 2 * width


def _pooled_convolution(fan_in: int, fan_out: int) -> "list[nn.Module]":
    """Pooling comes first, so that normalisation and rectifier see a quarter of the pixels."""
    from torch import nn

    convolution = _convolution(fan_in, fan_out)
    return [convolution, nn.MaxPool2d(2), nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]


def _residual_block(width: int) -> "nn.Module":
    from torch import nn

    class ResidualBlock(nn.Module):
        """x + f(x), rectified (He et al. 2016)."""

        def __init__(self) -> None:
            super().__init__()
            self.residual = nn.Sequential(
                _convolution(width, width),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                _convolution(width, width),
                nn.BatchNorm2d(width),
            )

        def forward(self, inputs: "torch.Tensor") -> "torch.Tensor":
            outputs: torch.Tensor = (inputs + self.residual(inputs)).relu()
            return outputs

    return ResidualBlock()


def _convolution(fan_in: int, fan_out: int) -> "nn.Conv2d":
    """3 × 3, at first the identity on as many channels as possible: no input is lost.

    Zagoruyko and Komodakis 2017 (DiracNets).
    """
    import torch
    from torch import nn

    layer = nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[: min(fan_in, fan_out)])
    return layer


def _init_edge_and_colour_filters(layer: "nn.Conv2d") -> None:
    """First filters: Haar's wavelets times opponent colours, much like the principal components of
    photos' patches."""
    import torch

    haar = [
        [[1.0, 1], [1, 1]],
        [[1, 1], [-1, -1]],
        [[1, -1], [1, -1]],
        [[1, -1], [-1, 1]],
    ]
    wavelets = torch.tensor(haar) / 2
    opponents = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    colours = torch.nn.functional.normalize(opponents, dim=1)
    filters = torch.einsum("cr,kyx->ckryx", colours, wavelets).reshape(12, 3, 2, 2)
    if layer.weight.shape[1:] == filters.shape[1:]:
        with torch.no_grad():
            layer.weight[:24] = torch.cat([filters, -filters])[: len(layer.weight)]
