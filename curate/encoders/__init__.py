"""Encoders turn images into vectors. To add one, write a function in a new module here:

    @encoder
    def siglip(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
        ...

Users then name it `siglip:VARIANT` or, for another input size in pixels, `siglip:VARIANT@384`.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.images import Preprocessing
from curate.registry import Registry

if TYPE_CHECKING:
    import torch

encoders = Registry("encoder", "curate.encoders")
encoder = encoders.register


@dataclass(frozen=True)
class Encoder:
    """A network that maps float [n, 3, size, size] to [n, dim], and how images must be prepared for it.

    `network` is a torch module, the path of an ONNX file, or a plain function of a NumPy array.
    """

    network: "torch.nn.Module | Path | Callable[[np.ndarray], np.ndarray]"
    preprocessing: Preprocessing
    weights_sha256: str


def make(spec: str, checkpoint: str | None = None) -> Encoder:
    """The encoder of a text NAME, NAME:VARIANT or NAME:VARIANT@SIZE. Raises CurateError, naming the remedy."""
    name, variant, size = _parts(spec)
    return encoders[name](variant, checkpoint, size)  # type: ignore[no-any-return]


def check(spec: str, checkpoint: str | None = None) -> None:
    """CurateError for a name or a file that there is none of; loads nothing."""
    name, _, size = _parts(spec)
    encoders[name]
    if size is not None and not 1 <= size <= 4096:
        raise CurateError(f"'{spec}': the size after @ is in pixels, from 1 to 4096")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise CurateError(f"no checkpoint at '{checkpoint}': check the path given with --checkpoint")


def _parts(spec: str) -> tuple[str, str, int | None]:
    head, at, size = spec.rpartition("@")
    if not at or not size.isdecimal():
        head, size = spec, ""
    name, _, variant = head.partition(":")
    return name, variant, int(size) if size else None


def hash_weights(module: "torch.nn.Module") -> str:
    """SHA-256 over the names and values of all parameters and buffers, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(_bytes()).numpy().tobytes())
    return digest.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def load_state(checkpoint: str) -> dict[str, Any]:
    """The tensors of a .safetensors file or of a .pt/.pth file, without running any code that lies in it."""
    import torch

    if checkpoint.endswith(".safetensors"):
        from safetensors.torch import load_file

        return dict(fitting(checkpoint, lambda: load_file(checkpoint)))
    state = fitting(checkpoint, lambda: torch.load(checkpoint, map_location="cpu", weights_only=True))
    for wrapper in ("state_dict", "model", "teacher"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise CurateError(f"the checkpoint '{checkpoint}' holds no dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_into(module: "torch.nn.Module", checkpoint: str, *, ignore: tuple[str, ...] = ()) -> None:
    """Load a checkpoint into a module, strictly but for names that begin with one of `ignore`."""
    state = {name: value for name, value in load_state(checkpoint).items() if not name.startswith(ignore or ("\0",))}
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CurateError(f"'{checkpoint}' does not fit the model: {str(error).splitlines()[-1].strip()}") from error
    wrong = [name for name in missing if not name.startswith(ignore or ("\0",))] + list(unexpected)
    if wrong:
        raise CurateError(f"'{checkpoint}' does not fit the model: {len(wrong)} names differ, for example '{wrong[0]}'")


def fitting(checkpoint: str, build: Callable[[], Any]) -> Any:
    """Call `build`, which reads the checkpoint; CurateError where it cannot be read or does not fit."""
    import pickle

    try:
        return build()
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise CurateError(f"'{checkpoint}' does not fit the model, or is no file of weights: {reason}") from error


def from_hub(what: str, build: Callable[[], Any]) -> Any:
    """Call `build`, which may download weights from the model hub, and turn a failure into one clear line.

    The hub is tried first for a few seconds, because its client otherwise repeats for minutes;
    where it cannot be reached, only files that are already in the local cache count.
    """
    from huggingface_hub import constants, errors

    offline = constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline
    try:
        return build()
    except (OSError, RuntimeError, ValueError, errors.HfHubHTTPError) as error:
        reason = "the model hub cannot be reached" if offline else str(error).strip().split("\n", 1)[0]
        raise CurateError(
            f"no weights for '{what}': {reason} and they are not in the local cache; "
            "download them elsewhere and give the file with --checkpoint"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(endpoint: str, seconds: float = 5.0) -> bool:
    """Whether a connection to the hub (or to the proxy in the environment) opens in time."""
    import socket
    import threading
    from urllib.parse import urlsplit

    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    parts = urlsplit(proxy or endpoint)
    opened = threading.Event()

    def connect() -> None:
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
            opened.set()
        except OSError:
            pass

    # In a thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return opened.is_set()
