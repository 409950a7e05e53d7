"""Weights from files: read without running any code in them, fitted to a model, and hashed.

Training scripts leave more than a state_dict: wrappers of torch.compile and DataParallel before
every name, a module of a framework before all of them, averaged weights beside the raw ones, and
the arguments of the run.
"""

import argparse
import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from curate.errors import CurateError
from curate.progress import log

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

# What torch.compile, DataParallel and DistributedDataParallel, and AveragedModel put into names.
_WRAPPERS = ("_orig_mod", "module")
_AVERAGE_COUNT = "n_averaged"  # of AveragedModel, beside the weights
# Where training scripts put the weights, the first that is there. Averaged ones come before raw
# ones, as timm reads its own checkpoints; DINO's teacher is the average of its student.
_AVERAGED_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "teacher")
_ENTRIES = (*_AVERAGED_ENTRIES, "state_dict", "model", "model_state_dict")
_MAX_NAMES_SHOWN = 5


class CheckpointPath(NamedTuple):
    """A file, and the entry in it that --checkpoint FILE#ENTRY names."""

    file: str
    entry: str | None


def split_checkpoint(checkpoint: str) -> CheckpointPath:
    """FILE#ENTRY in two; a file whose own name has a # is a file."""
    file, separator, entry = checkpoint.rpartition("#")
    if not separator or Path(checkpoint).expanduser().is_file():
        return CheckpointPath(checkpoint, None)
    return CheckpointPath(file, entry)


def hash_weights(module: "torch.nn.Module") -> str:
    """SHA-256 over the names and values of all parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_state(checkpoint: str, model_names: Iterable[str] = ()) -> dict[str, Any]:
    """The tensors of a .safetensors, .pt or .pth file, under the names that the model has.

    `checkpoint` is FILE, or FILE#ENTRY for one of several sets of weights in it. Raises
    CurateError.
    """
    return fit_names(_read_tensors(checkpoint), model_names, split_checkpoint(checkpoint).file)


def load_into(module: "torch.nn.Module", checkpoint: str, *, ignore: tuple[str, ...] = ()) -> None:
    """Load a checkpoint strictly, but for names that start with one of `ignore`.

    Raises CurateError where it does not fit.
    """
    state = fit_names(
        _read_tensors(checkpoint),
        module.state_dict().keys(),
        split_checkpoint(checkpoint).file,
        ignore,
    )
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


def fit_names(
    tensors: Mapping[str, Any],
    model_names: Iterable[str],
    file: str,
    ignore: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The tensors under the names that the model has; those that start with `ignore` are left out.

    The wrappers' names are removed wherever they stand, unless the model itself has such a module.
    Without `model_names` nothing else is changed. A module's name that all others share and that
    the model lacks is removed, and said.
    """
    own_modules = {component for name in model_names for component in name.split(".")[:-1]}
    fitted: dict[str, Any] = {}
    for name, tensor in tensors.items():
        components = [
            component
            for component in name.split(".")
            if component in own_modules or component not in _WRAPPERS
        ]
        fitted[".".join(components)] = tensor
    fitted.pop(_AVERAGE_COUNT, None)
    fitted = _without(fitted, ignore)
    removed = ""
    top_modules = {name.partition(".")[0] for name in model_names}
    while top_modules and (prefix := _shared_prefix(fitted)) and prefix not in top_modules:
        removed += f"{prefix}."
        fitted = {name.removeprefix(f"{prefix}."): value for name, value in fitted.items()}
        fitted = _without(fitted, ignore)
    if removed:
        log.info("%s: the names of its weights are read without '%s'", file, removed)
    return fitted


def check_loadable(checkpoint: str, load: Callable[[], Result]) -> Result:
    """Call `load`, which reads the checkpoint; CurateError where it cannot or does not fit."""
    try:
        return load()
    except CurateError:
        raise
    except Exception as error:  # the boundary to other people's files: a damaged one raises any
        raise CurateError(
            f"'{checkpoint}' does not fit the model, or is no file of weights: "
            f"{describe_failure(error)}"
        ) from error


def describe_failure(error: BaseException) -> str:
    """The first line of what a library says, unless it is advice to load a file unsafely."""
    reason = str(error).strip().split("\n", 1)[0]
    # torch, open_clip and timm wrap it in errors of several types; the option's name is in all.
    if "weights_only" in reason or isinstance(error, pickle.UnpicklingError):
        return "it holds more than weights, and curate unpickles nothing else"
    return reason


def _read_tensors(checkpoint: str) -> dict[str, Any]:
    """The tensors in FILE, or in the entry of FILE#ENTRY, under the names they have there."""
    file, entry = split_checkpoint(checkpoint)
    content = _read_file(file)
    state = _find_entry(content, file, entry) if entry else _find_weights(content, file)
    tensors = {str(name): value for name, value in state.items() if _is_tensor(value)}
    if not tensors:
        raise CurateError(f"the checkpoint '{checkpoint}' holds no dict of tensors")
    return tensors


def _without(tensors: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in tensors.items() if not name.startswith(prefixes)}


def _shared_prefix(tensors: Mapping[str, Any]) -> str:
    """The module that all names begin with, or no text."""
    prefixes = {name.partition(".")[0] if "." in name else "" for name in tensors}
    return prefixes.pop() if len(prefixes) == 1 else ""


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _read_file(file: str) -> Any:
    """What is in a file of weights; argparse.Namespace is the only class that may be in it.

    Raises CurateError, in our own words: torch's say how to load a file unsafely.
    """
    import torch

    if file.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return check_loadable(file, lambda: load_file(file))
        except SafetensorError as error:
            raise CurateError(f"'{file}' is no file of weights, or is damaged: {error}") from error
    if _is_torchscript(file):
        raise CurateError(
            f"'{file}' is a TorchScript archive, a program with its weights: save the weights "
            f"alone, by python -c \"import torch; torch.save(torch.jit.load('{file}', "
            "map_location='cpu').state_dict(), 'weights.pt')\""
        )
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CurateError(f"cannot read '{file}': {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CurateError(
            f"'{file}' is no file of weights alone{_name_unsafe(file)}: curate unpickles nothing "
            "else; save the model's state_dict() by itself, or as .safetensors"
        ) from error
    # The boundary to a reader of other people's files, which raises anything on damaged ones.
    except Exception as error:
        raise CurateError(
            f"'{file}' is no file of weights, or is damaged ({type(error).__name__})"
        ) from error


def _is_torchscript(file: str) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _name_unsafe(file: str) -> str:
    """The classes in a checkpoint that would have to be unpickled, for the message."""
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # the boundary again; files of before torch 1.6 cannot be looked into
        return ""
    return f", but holds {', '.join(sorted(names)[:_MAX_NAMES_SHOWN])}" if names else ""


def _find_weights(content: Any, file: str) -> Mapping[str, Any]:
    """The weights in what a training script saved: at the top, or in an entry of it."""
    state, averaged = content, ""
    while isinstance(state, Mapping) and not any(map(_is_tensor, state.values())):
        entries = [name for name, value in state.items() if isinstance(value, Mapping)]
        name = next((name for name in _ENTRIES if name in entries), None)
        if name is None:
            entries = [name for name in entries if _holds_tensors(state[name])]
            if len(entries) != 1:
                break
            name = entries[0]
        if name in _AVERAGED_ENTRIES:
            averaged = name
        unread = [entry for entry in _ENTRIES if entry != name and entry in entries]
        state = state[name]
        if averaged == name and unread:
            log.info(
                "%s: the averaged weights (%s) are read; for others, --checkpoint %s#%s",
                file,
                name,
                file,
                unread[0],
            )
    if not isinstance(state, Mapping):
        raise CurateError(f"the checkpoint '{file}' holds no dict of tensors")
    candidates = [name for name, value in state.items() if _holds_tensors(value)]
    if len(candidates) > 1 and not any(map(_is_tensor, state.values())):
        names = ", ".join(map(str, candidates[:_MAX_NAMES_SHOWN]))
        raise CurateError(
            f"'{file}' holds several sets of weights ({names}): "
            f"choose one, --checkpoint {file}#{candidates[0]}"
        )
    return state


def _find_entry(content: Any, file: str, entry: str) -> Mapping[str, Any]:
    """The entry that FILE#ENTRY names; one inside another is NAME.NAME."""
    state: Any = content
    for name in [entry] if isinstance(content, Mapping) and entry in content else entry.split("."):
        if not isinstance(state, Mapping) or not isinstance(state.get(name), Mapping):
            available = ", ".join(_list_entries(state)[:_MAX_NAMES_SHOWN]) or "none"
            raise CurateError(f"'{file}' has no entry '{entry}' of weights; there are: {available}")
        state = state[name]
    return cast("Mapping[str, Any]", state)


def _list_entries(state: Any) -> list[str]:
    if not isinstance(state, Mapping):
        return []
    return [str(name) for name, value in state.items() if isinstance(value, Mapping)]


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(map(_is_tensor, value.values()))
