"""The GPUs of this machine."""

from curate.errors import CurateError
from curate.execution.types import Devices

DEVICES = ("auto", "cpu", "cuda")


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
