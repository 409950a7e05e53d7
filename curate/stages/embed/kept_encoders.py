"""Encoders that were exported to ONNX, kept in the user's cache for later runs.

Loading a model takes seconds, most of them for imports of torch and its libraries, and exporting it
one more. A kept encoder needs neither. It is found by checksums of all that it was made from: the
encoder's name, the files of its weights, the code that loads and exports it, and the versions of
the libraries; before it is used, its own checksum is compared.
"""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from curate.encoders import Encoder, find_weights_files
from curate.errors import CurateError
from curate.formats.images import Preprocessing
from curate.stages.embed import inference
from curate.stages.staleness import encoder_checksum
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.checksums import file_checksum

_LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "onnxruntime")
_MAX_KEPT = 8  # those that were used last


class KeptEncoder(NamedTuple):
    """An encoder whose network is an ONNX file, and the length of its vectors."""

    encoder: Encoder
    dim: int


def kept_folder() -> Path:
    """Where encoders are kept: curate/encoders in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "curate" / "encoders"


def load_kept(spec: str, checkpoint: str | None) -> KeptEncoder | None:
    """The kept encoder of a spec; None where there is none, or its files are not sound.

    Never raises: whatever is wrong, the encoder can be loaded and exported as ever.
    """
    try:
        key = _make_key(spec, checkpoint)
        if key is None:
            return None
        network = kept_folder() / f"{key}.onnx"
        content = json.loads(network.with_suffix(".json").read_text(encoding="utf-8"))
        if file_checksum(str(network), content["checksum"]) != content["checksum"]:
            return None
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["preprocessing"].items()
        }
        preprocessing = Preprocessing(**values)
        kept = KeptEncoder(
            Encoder(network, preprocessing, str(content["weights_sha256"])), int(content["dim"])
        )
        os.utime(network)
    except (OSError, CurateError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return kept


def keep_encoder(spec: str, checkpoint: str | None, encoder: Encoder, onnx: str, dim: int) -> None:
    """Keep the exported network `onnx` of an encoder, where its weights' files are known.

    Does nothing where the cache cannot be written.
    """
    with contextlib.suppress(OSError, CurateError):
        key = _make_key(spec, checkpoint)
        if key is None or not Path(onnx).is_file():
            return
        network = kept_folder() / f"{key}.onnx"
        with atomic_write(network) as temporary:
            shutil.copyfile(onnx, temporary)
        content = {
            "encoder": spec,
            "weights_sha256": encoder.weights_sha256,
            "preprocessing": asdict(encoder.preprocessing),
            "dim": dim,
            "checksum": file_checksum(str(network)),
        }
        with atomic_write(network.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        by_use = sorted(kept_folder().glob("*.onnx"), key=lambda path: path.stat().st_mtime)
        for path in by_use[:-_MAX_KEPT]:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)


def copy_kept(kept: KeptEncoder, location: str) -> None:
    """Copy the network to where workers of any machine read it, and no other run removes it."""
    path = Path(str(kept.encoder.network))
    if files.is_url(location):
        files.upload(path, location)
    else:
        shutil.copyfile(path, location)


def _make_key(spec: str, checkpoint: str | None) -> str | None:
    """What an exported encoder depends on, as a name; None where that is not known."""
    weights_files = find_weights_files(spec, checkpoint)
    if weights_files is None:
        return None
    text = [spec, checkpoint or "", encoder_checksum(spec)]
    text.append(hashlib.sha256(Path(inference.__file__).read_bytes()).hexdigest())
    text += map(_version, _LIBRARIES)
    text += map(file_checksum, weights_files)
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:32]


def _version(library: str) -> str:
    try:
        return f"{library} {metadata.version(library)}"
    except metadata.PackageNotFoundError:
        return f"no {library}"
