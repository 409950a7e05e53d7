"""`curate doctor`: what this machine and this installation offer, for a bug report."""

import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from curate.catalog.provenance import git_commit, version
from curate.encoders import make_encoder
from curate.errors import CurateError
from curate.execution.devices import find_local_devices
from curate.execution.limits import cpu_count, memory_limit
from curate.formatting import format_bytes
from curate.options import verb
from curate.progress import announce

_PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "onnxruntime",
    "faiss-gpu",
    "faiss-cpu",
    "duckdb",
    "pyarrow",
    "numpy",
    "pillow",
    "webdataset",
    "fsspec",
    "s3fs",
    "gcsfs",
    "ray",
    "typer",
)
# Encoders that need no name of a model and no network.
_SELF_CONTAINED = ("pixels", "efficientnet_lite0", "efficientnet_lite2")
# A variable that is secret, or that says where one is, is not shown.
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "OMP_NUM_THREADS",
    "RAY_ADDRESS",
    "TMPDIR",
)


class Finding(NamedTuple):
    """One line: what was looked at, and what is there."""

    subject: str
    value: str


@verb()
def doctor() -> list[Finding]:
    """Look at versions, devices, limits, folders and encoders; open no connection.

    Each line is a subject and what was found; what does not work says why.
    """
    announce("doctor: loading libraries and encoders")
    commit = git_commit()
    return [
        Finding("curate", version() + (f", commit {commit[:12]}" if commit else "")),
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        Finding("platform", platform.platform()),
        *(Finding(package, _describe_package(package)) for package in _PACKAGES),
        Finding("devices", _describe_devices()),
        Finding("cores", f"{cpu_count()} of {os.cpu_count()}"),
        Finding("memory", f"{format_bytes(memory_limit())} at most"),
        Finding("temporary files", _describe_folder(Path(tempfile.gettempdir()))),
        Finding("model cache", _describe_folder(_hub_cache())),
        *(Finding(f"encoder {spec}", _describe_encoder(spec)) for spec in _SELF_CONTAINED),
        *(
            Finding(f"${name}", os.environ[name])
            for name in _VARIABLES
            if os.environ.get(name) is not None
        ),
    ]


def _describe_package(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _describe_devices() -> str:
    devices = find_local_devices("auto")
    if not devices.gpus:
        return "cpu"
    import torch

    names = [torch.cuda.get_device_name(gpu) for gpu in devices.gpus]
    return f"{devices.kind}: {', '.join(names)}"


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _describe_folder(folder: Path) -> str:
    """Whether files can be written there, or in the nearest parent that exists, and how much."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return f"{folder}: not writable"
    return f"{folder}: {format_bytes(shutil.disk_usage(existing).free)} free"


def _describe_encoder(spec: str) -> str:
    try:
        preprocessing = make_encoder(spec).preprocessing
    except CurateError as error:
        return str(error)
    return f"loads, images of {preprocessing.size} pixels"
