"""The GPUs of this machine."""

import os
from collections.abc import Mapping

from curate.errors import CurateError
from curate.execution.types import Devices

DEVICES = ("auto", "cpu", "cuda")
# By which a process is told which GPUs it may use; the second is that of AMD's.
_VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def find_local_devices(device: str) -> Devices:
    """The devices of this machine to use for `auto`, `cpu` or `cuda`.

    Raises CurateError for cuda without a GPU.
    """
    if device == "cpu" or (device == "auto" and not _has_driver()):
        return Devices("cpu", ())
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not count:
        raise CurateError(
            "--device cuda, but torch sees no GPU: check the driver, or use --device cpu"
        )
    return Devices("cuda", tuple(range(count))) if count else Devices("cpu", ())


def only_this_gpu(gpu: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables by which a child process sees one GPU of those that this process sees.

    `gpu` counts those that this process sees. Where it was given some of the machine's, by number,
    UUID or the name of a MIG instance, the child gets the same name.
    """
    given = [name for name in _VISIBLE_DEVICES if environment.get(name)]
    variable = given[0] if given else _VISIBLE_DEVICES[0]
    names = [name.strip() for name in environment.get(variable, "").split(",")]
    return {variable: names[gpu] if gpu < len(names) and names[gpu] else str(gpu)}


def _has_driver() -> bool:
    """Whether a GPU driver can be loaded: a check that spares the import of torch without one."""
    import ctypes

    for library in ("libcuda.so.1", "libamdhip64.so", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
            return True
        except OSError:
            continue
    return False
