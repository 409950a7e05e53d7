"""Run an encoder over batches of pixels, on the fastest path the machine offers.

On a CPU the network is exported to ONNX once and run by ONNX Runtime, which was 2 to 5 times as
fast as eager torch on EfficientNet-Lite0; workers then need not import torch at all. Where the
export fails, and on CUDA, torch runs it.
"""

import contextlib
import functools
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from curate import encoders
from curate.encoders import Encoder
from curate.errors import CurateError
from curate.images import Preprocessing
from curate.progress import log
from curate.storage import is_remote, upload

if TYPE_CHECKING:
    import torch

Forward = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Model:
    """All that a worker needs to run an encoder: small, picklable, hashable."""

    spec: str
    checkpoint: str | None
    device: str
    threads: int
    preprocessing: Preprocessing
    onnx: Path | None  # the network as ONNX; None where torch or a plain function runs it


def devices(wanted: str) -> tuple[str, tuple[int, ...]]:
    """The device to use and the GPUs there are, for `auto`, `cpu` or `cuda`. Raises CurateError."""
    check_device(wanted)
    if wanted == "cpu" or (wanted == "auto" and not _has_driver()):
        return "cpu", ()
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and not count:
        raise CurateError("--device cuda, but torch sees no GPU: check the driver, or use --device cpu")
    return ("cuda", tuple(range(count))) if count else ("cpu", ())


def check_device(wanted: str) -> None:
    """CurateError for a device that there is none of."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise CurateError(f"no device called '{wanted}'; there are: auto, cpu, cuda")


def _has_driver() -> bool:
    """Whether a GPU driver can be loaded at all: a look that spares the import of torch where there is none."""
    import ctypes

    for library in ("libcuda.so.1", "libamdhip64.so", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
            return True
        except OSError:
            continue
    return False


def prepare(encoder: Encoder, spec: str, checkpoint: str | None, device: str, threads: int, onnx: Path) -> Model:
    """Choose how the encoder is run; a torch network on a CPU is exported to the path `onnx`."""
    network = encoder.network
    exported: Path | None = None
    if isinstance(network, Path):
        exported = network.absolute()
    elif _is_torch(network) and device == "cpu":
        exported = _export(cast("torch.nn.Module", network), encoder.preprocessing, onnx)
    return Model(spec, checkpoint, device, threads, encoder.preprocessing, exported)


@functools.cache
def load(model: Model) -> Forward:
    """The function uint8 [n, size, size, 3] -> float32 [n, dim]; made once in each worker process."""
    how = model.preprocessing
    if model.onnx is not None:
        session = _session(model.onnx, model.threads, model.device)
        return lambda pixels: session(how.normalize(pixels))
    network = encoders.make(model.spec, model.checkpoint).network
    if _is_torch(network):
        return _torch_forward(cast("torch.nn.Module", network), model)
    function = cast(Forward, network)
    return lambda pixels: function(how.normalize(pixels))


def _is_torch(network: Any) -> bool:
    return hasattr(network, "state_dict")


def _session(path: Path, threads: int, device: str) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    network = path.read_bytes() if is_remote(path) else str(path)
    wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(network, options, providers=[*providers, "CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def forward(images: np.ndarray) -> np.ndarray:
        output = np.asarray(session.run(None, {name: images})[0], np.float32)
        return output.reshape(len(images), -1)

    return forward


def _torch_forward(network: "torch.nn.Module", model: Model) -> Forward:
    """On CUDA: pinned copy, normalisation on the device, bfloat16 where it is safe (autocast)."""
    import torch

    device, how = torch.device(model.device), model.preprocessing
    on_gpu = device.type == "cuda"
    if not on_gpu:
        torch.set_num_threads(model.threads)
    network = network.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = torch.tensor(how.mean, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(how.std, device=device).view(1, 3, 1, 1) * 255

    @torch.inference_mode()
    def forward(pixels: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if on_gpu:
            batch = batch.pin_memory().to(device, non_blocking=True)
        # NHWC bytes seen as NCHW are channels-last already: no copy.
        images = (batch.permute(0, 3, 1, 2).float() - mean) / std
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
            output = network(images)
        return np.asarray(output.float().flatten(1).cpu().numpy())

    return forward


def _export(network: "torch.nn.Module", how: Preprocessing, path: Path) -> Path | None:
    """Write the network as ONNX; None where that fails or does not give the same vectors."""
    import torch

    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="curate-") as folder:
            here = _export(network, how, Path(folder) / path.name)
            if here is not None:
                upload(here, path)
            return path if here else None
    images = torch.rand(2, 3, how.size, how.size, generator=torch.Generator().manual_seed(0))
    attention_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no ONNX counterpart
    try:
        # The tracing exporter: 0.5 s, where the newer one needs 17 s. It prints its graph when it fails.
        with warnings.catch_warnings(), _silent_stdout(), torch.no_grad():
            warnings.simplefilter("ignore")
            expected = network(images).float().flatten(1).numpy()
            torch.onnx.export(
                network, (images,), str(path), dynamo=False, opset_version=17,
                input_names=["images"], output_names=["vectors"],
                dynamic_axes={"images": {0: "n"}, "vectors": {0: "n"}},
            )  # fmt: skip
        found = _session(path, 1, "cpu")(images.numpy())
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        log.info("torch runs this encoder: it could not be exported to ONNX (%s)", str(error).split("\n", 1)[0])
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(attention_fast_path)
    if not np.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        log.info("torch runs this encoder: its ONNX export gave other vectors")
        return None
    return path


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Lose what is written to stdout meanwhile, by C++ code too: our stdout is for names that shells read."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
