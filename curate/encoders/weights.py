"""Weights from files: read without running any code in them, and hashed."""

import hashlib
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from curate.errors import CurateError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


def hash_weights(module: "torch.nn.Module") -> str:
    """SHA-256 over the names and values of all parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_state(checkpoint: str) -> dict[str, Any]:
    """The tensors of a .safetensors, .pt or .pth file. Raises CurateError."""
    import torch

    if checkpoint.endswith(".safetensors"):
        from safetensors.torch import load_file

        return dict(check_loadable(checkpoint, lambda: load_file(checkpoint)))
    state = check_loadable(
        checkpoint, lambda: torch.load(checkpoint, map_location="cpu", weights_only=True)
    )
    for wrapper in ("state_dict", "model", "teacher"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise CurateError(f"the checkpoint '{checkpoint}' holds no dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_into(module: "torch.nn.Module", checkpoint: str, *, ignore: tuple[str, ...] = ()) -> None:
    """Load a checkpoint strictly, but for names that start with one of `ignore`.

    Raises CurateError where it does not fit.
    """
    state = {
        name: tensor
        for name, tensor in load_state(checkpoint).items()
        if not name.startswith(ignore)
    }
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CurateError(f"'{checkpoint}' does not fit the model: {reason}") from error
    differing = [name for name in missing if not name.startswith(ignore)] + list(unexpected)
    if differing:
        raise CurateError(
            f"'{checkpoint}' does not fit the model: {len(differing)} names differ, "
            f"for example '{differing[0]}'"
        )


def check_loadable(checkpoint: str, load: Callable[[], Result]) -> Result:
    """Call `load`, which reads the checkpoint; CurateError where it cannot or does not fit."""
    try:
        return load()
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise CurateError(
            f"'{checkpoint}' does not fit the model, or is no file of weights: {reason}"
        ) from error
