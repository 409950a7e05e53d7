"""A small convolutional network for images of up to 64 pixels, made for accuracy per second on a CPU core.

What was found on CIFAR-10: a stem that halves the edge at once, widths of 40 and 80, pooling before
normalisation, and first filters that look at the right things (docs/metrics.md has the figures).
"""

from typing import TYPE_CHECKING

from curate.errors import CurateError
from curate.models import Model, model

if TYPE_CHECKING:
    import torch
    from torch import nn


@model
def conv(variant: str = "32") -> Model:
    """A small residual network for images of 32 pixels; conv:64 for larger images."""
    if variant not in ("16", "32", "48", "64"):
        raise CurateError(f"'conv:{variant}': the edge of the images is one of 16, 32, 48, 64 pixels")
    return Model(
        _body,
        edge=int(variant),
        batch=64,
        epochs=10,
        learning_rate=0.01,
        weight_decay=0.05,
        label_smoothing=0.1,
        stack=1,
        on_subsets={"epochs": 30, "label_smoothing": 0.0},
    )


def _body(channels: int, stem: int = 24, width: int = 40) -> "tuple[torch.nn.Module, int]":
    from torch import nn

    first = nn.Conv2d(channels, stem, 2, stride=2, bias=False)
    _look_at_edges_and_colours(first)
    return nn.Sequential(
        first, nn.BatchNorm2d(stem), nn.ReLU(inplace=True),
        *_pooled(stem, width), _residual(width), *_pooled(width, 2 * width), _residual(2 * width),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(),
    ), 2 * width  # fmt: skip


def _pooled(fan_in: int, fan_out: int) -> "list[nn.Module]":
    """A convolution, then pooling, so that normalisation and rectifier see a quarter of the pixels."""
    from torch import nn

    return [_convolution(fan_in, fan_out), nn.MaxPool2d(2), nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]


def _residual(width: int) -> "nn.Module":
    from torch import nn

    class Residual(nn.Module):
        """x + f(x), rectified (He et al. 2016)."""

        def __init__(self) -> None:
            super().__init__()
            self.change = nn.Sequential(
                _convolution(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                _convolution(width, width), nn.BatchNorm2d(width),
            )  # fmt: skip

        def forward(self, inputs: "torch.Tensor") -> "torch.Tensor":
            outputs: torch.Tensor = (inputs + self.change(inputs)).relu()
            return outputs

    return Residual()


def _convolution(fan_in: int, fan_out: int) -> "nn.Conv2d":
    """3 × 3, and at first the identity on as many channels as there are: what goes in is not lost (Zagoruyko et al. 2017)."""
    import torch
    from torch import nn

    layer = nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[: min(fan_in, fan_out)])
    return layer


def _look_at_edges_and_colours(layer: "nn.Conv2d") -> None:
    """First filters: Haar's wavelets times opponent colours, which the principal components of photos' patches resemble."""
    import torch

    haar = torch.tensor([[[1.0, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) / 2
    colours = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]), dim=1)
    filters = torch.einsum("cr,kyx->ckryx", colours, haar).reshape(12, 3, 2, 2)
    if layer.weight.shape[1:] == filters.shape[1:]:
        with torch.no_grad():
            layer.weight[:24] = torch.cat([filters, -filters])[: len(layer.weight)]
