"""Encoders turn images into vectors. To add one, write a function in a new module here:

    @encoder
    def siglip(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
        ...

Users then name it `siglip:VARIANT` or, for another input size in pixels, `siglip:VARIANT@384`.

An encoder that was trained on images with their captions may have a text tower too, which is loaded
apart from the network for images, and only where captions are embedded:

    @text_tower_of(siglip)
    def siglip_text(variant: str, checkpoint: str | None, device: str) -> TextTower:
        ...

Where the files of its weights are known without loading them, the exported network is kept for the
next run:

    @weights_files_of(siglip)
    def siglip_files(variant: str, checkpoint: str | None) -> list[str] | None:
        ...
"""

import contextlib
from collections.abc import Callable, Iterator
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
_text_towers: "dict[str, Callable[[str, str | None, str], TextTower]]" = {}  # by encoder name
_weights_files: dict[str, Callable[[str, str | None], list[str] | None]] = {}
_MAX_SIZE = 4096  # pixels


@dataclass(frozen=True)
class Encoder:
    """A network that maps float [n, 3, size, size] to [n, dim], and its image preprocessing.

    `network` is a torch module, the path of an ONNX file, or a plain function of a NumPy array.
    """

    network: "torch.nn.Module | Path | Callable[[np.ndarray], np.ndarray]"
    preprocessing: Preprocessing
    weights_sha256: str


@dataclass(frozen=True)
class TextTower:
    """A function from n texts to vectors, float32 [n, dim], and the checksum of its weights."""

    encode: Callable[[list[str]], np.ndarray]
    weights_sha256: str


def text_tower_of(
    encoder: Callable[..., Encoder],
) -> Callable[[Callable[[str, str | None, str], TextTower]], Callable[..., TextTower]]:
    """Use as a decorator: the function loads the text tower of `encoder` onto a device."""

    def register(
        function: Callable[[str, str | None, str], TextTower],
    ) -> Callable[..., TextTower]:
        _text_towers[encoder.__name__] = function
        return function

    return register


def weights_files_of(
    *encoders: Callable[..., Encoder],
) -> Callable[
    [Callable[[str, str | None], list[str] | None]], Callable[[str, str | None], list[str] | None]
]:
    """Use as a decorator: the function lists all files that the weights of `encoders` are read
    from, for a variant and a checkpoint; None where it cannot tell."""

    def register(
        function: Callable[[str, str | None], list[str] | None],
    ) -> Callable[[str, str | None], list[str] | None]:
        for one in encoders:
            _weights_files[one.__name__] = function
        return function

    return register


def find_weights_files(spec: str, checkpoint: str | None = None) -> list[str] | None:
    """The files with an encoder's weights; None where they are not known without loading it.

    Raises CurateError.
    """
    name, variant, _ = _parse_spec(spec)
    encoders[name]
    find = _weights_files.get(name)
    return find(variant or name, checkpoint) if find else None


def make_encoder(spec: str, checkpoint: str | None = None) -> Encoder:
    """The encoder of a spec NAME, NAME:VARIANT or NAME:VARIANT@SIZE. Raises CurateError."""
    name, variant, size = _parse_spec(spec)
    make = encoders[name]
    with _explain_errors(spec):
        return make(variant, checkpoint, size)  # type: ignore[no-any-return]


def make_text_tower(spec: str, checkpoint: str | None = None, device: str = "cpu") -> TextTower:
    """The text tower of the encoder of a spec. Raises CurateError."""
    check_text_tower(spec)
    name, variant, _ = _parse_spec(spec)
    with _explain_errors(spec):
        return _text_towers[name](variant, checkpoint, device)


@contextlib.contextmanager
def _explain_errors(spec: str) -> Iterator[None]:
    """CurateError for whatever a library raises for a model or weights that it cannot make."""
    try:
        yield
    except CurateError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CurateError(
            f"the encoder {spec} cannot be loaded ({type(error).__name__}: {reason}): "
            "check its name, its size and the --checkpoint"
        ) from error


def check_text_tower(spec: str) -> None:
    """OptionError for an encoder without a text tower; loads no weights."""
    name, _, _ = _parse_spec(spec)
    encoders[name]
    if name not in _text_towers:
        raise OptionError(f"the encoder {spec} has no text tower: use open_clip:MODEL/PRETRAINED")


def check_spec(spec: str) -> None:
    """OptionError for a name that does not exist or an impossible size; loads no weights."""
    name, _, size = _parse_spec(spec)
    encoders[name]
    if size is not None and not 1 <= size <= _MAX_SIZE:
        raise OptionError(f"'{spec}': the size after @ is in pixels, from 1 to {_MAX_SIZE}")


def check_checkpoint(path: str) -> None:
    """CurateError for a file that does not exist; FILE#ENTRY names weights in a file."""
    from curate.encoders.weights import split_checkpoint

    if not Path(split_checkpoint(str(path)).file).expanduser().is_file():
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
