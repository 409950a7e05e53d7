"""Encoders turn images into vectors. To add one, write a function in a new module here:

    @encoder
    def siglip(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
        ...

Users then name it `siglip:VARIANT` or, for another input size in pixels, `siglip:VARIANT@384`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curate.errors import CurateError, OptionError
from curate.formats.images import Preprocessing
from curate.registry import Registry

if TYPE_CHECKING:
    import torch

encoders = Registry("encoder", "curate.encoders")
encoder = encoders.register
_MAX_SIZE = 4096  # pixels


@dataclass(frozen=True)
class Encoder:
    """A network that maps float [n, 3, size, size] to [n, dim], and its image preprocessing.

    `network` is a torch module, the path of an ONNX file, or a plain function of a NumPy array.
    """

    network: "torch.nn.Module | Path | Callable[[np.ndarray], np.ndarray]"
    preprocessing: Preprocessing
    weights_sha256: str


def make_encoder(spec: str, checkpoint: str | None = None) -> Encoder:
    """The encoder of a spec NAME, NAME:VARIANT or NAME:VARIANT@SIZE. Raises CurateError."""
    name, variant, size = _parse_spec(spec)
    return encoders[name](variant, checkpoint, size)  # type: ignore[no-any-return]


def check_spec(spec: str) -> None:
    """OptionError for a name that does not exist or an impossible size; loads no weights."""
    name, _, size = _parse_spec(spec)
    encoders[name]
    if size is not None and not 1 <= size <= _MAX_SIZE:
        raise OptionError(f"'{spec}': the size after @ is in pixels, from 1 to {_MAX_SIZE}")


def check_checkpoint(path: str) -> None:
    """CurateError for a file that does not exist."""
    if not Path(path).expanduser().is_file():
        raise CurateError(f"no checkpoint at '{path}': check the path given with --checkpoint")


def encoder_module(spec: str) -> str:
    """The module that defines the encoder."""
    return encoders[_parse_spec(spec)[0]].__module__


def _parse_spec(spec: str) -> tuple[str, str, int | None]:
    head, at, size = spec.rpartition("@")
    if not at or not size.isdecimal():
        head, size = spec, ""
    name, _, variant = head.partition(":")
    return name, variant, int(size) if size else None
