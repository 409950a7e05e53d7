"""Run an encoder over batches of pixels, on the fastest path the machine offers.

On a CPU the network is exported to ONNX once and run by ONNX Runtime, which was 2 to 5 times as
fast as eager torch on EfficientNet-Lite0. Where the export fails, and on CUDA, torch runs it.
"""

import contextlib
import functools
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from curate.encoders import Encoder, make_encoder, make_text_tower
from curate.encoders.onnx import explain, make_session
from curate.errors import CurateError
from curate.formats.images import Preprocessing
from curate.progress import log
from curate.storage.files import is_url, read_bytes, upload

if TYPE_CHECKING:
    import torch

Images = np.ndarray | Sequence[np.ndarray]  # each uint8 [size, size, 3 or 4]
Forward = Callable[[Images], np.ndarray]  # n images to float32 [n, dim]
EncodeTexts = Callable[[list[str]], np.ndarray]

_CUDA_PROVIDER = "CUDAExecutionProvider"
# What the allocators of torch, cuDNN, cuBLAS and ONNX Runtime say.
_OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "alloc_failed", "bad_alloc")


class CannotContinueError(CurateError):
    """What is no shard's and no image's problem, as an encoder that fails whatever it is given."""


@dataclass(frozen=True)
class EncoderPlan:
    """All that a worker needs to run an encoder: small, picklable, hashable."""

    spec: str
    checkpoint: str | None
    device: str
    threads: int
    preprocessing: Preprocessing
    onnx: str | None  # the network as ONNX; None where torch or a plain function runs it
    compiled_batch: int | None = None  # for batches of so many images a GPU's code is compiled


def plan_encoder(
    encoder: Encoder, spec: str, checkpoint: str | None, device: str, threads: int, onnx: str
) -> EncoderPlan:
    """Choose how the encoder is run; on a CPU, a torch network is exported to `onnx`."""
    network = encoder.network
    exported: str | None = None
    if isinstance(network, Path):
        exported = str(network.absolute())
    elif _is_torch(network) and device == "cpu":
        exported = _export(cast("torch.nn.Module", network), encoder.preprocessing, onnx)
    return EncoderPlan(spec, checkpoint, device, threads, encoder.preprocessing, exported)


@functools.cache
def load_forward(plan: EncoderPlan) -> Forward:
    """The function from images to vectors; made once in each worker."""
    normalize = plan.preprocessing.normalize
    if plan.onnx is not None:
        run_session = _make_session(plan.onnx, plan.threads, plan.device)
        return lambda pixels: run_session(normalize(pixels))
    network = make_encoder(plan.spec, plan.checkpoint).network
    if _is_torch(network):
        return _make_torch_forward(cast("torch.nn.Module", network), plan)
    function = cast("Callable[[np.ndarray], np.ndarray]", network)
    return lambda pixels: function(normalize(pixels))


class BatchLimit:
    """How many items go through a model at once: half as many after each time that memory ended."""

    def __init__(self) -> None:
        self.count: int | None = None
        self.note: str | None = None  # for the user

    def halve(self, count: int) -> None:
        """So many did not fit."""
        self.count = max(count // 2, 1)
        self.note = (
            f"out of memory with {count} images at once: {self.count} from now on "
            f"(--batch-size {self.count} begins with that)"
        )


@functools.cache
def batch_limits(plan: EncoderPlan) -> tuple[BatchLimit, BatchLimit]:
    """This process' limits for images and for texts."""
    return BatchLimit(), BatchLimit()


def encode_in_parts(
    plan: EncoderPlan, encode: Callable[[Any], np.ndarray], items: Sequence[Any], limit: BatchLimit
) -> np.ndarray:
    """The vectors of images or texts, float16 [n, dim], in as many calls as the memory needs.

    Raises CannotContinueError where the encoder fails, and where even one item does not fit.
    """
    parts: list[np.ndarray] = []
    start = 0
    while start < len(items):
        part = items[start : start + (limit.count or len(items))]
        try:
            with np.errstate(over="ignore"), explain_encoder_errors(plan):
                vectors = encode(part).astype(np.float16)
        except CannotContinueError as error:
            if len(part) == 1 or not is_out_of_memory(error.__cause__):
                raise
            free_device_memory()
            limit.halve(len(part))
            continue
        parts.append(vectors)
        start += len(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@contextlib.contextmanager
def explain_encoder_errors(plan: EncoderPlan) -> Iterator[None]:
    """CannotContinueError, in one line, for whatever a model raises."""
    try:
        yield
    except CannotContinueError:
        raise
    except CurateError as error:
        raise CannotContinueError(str(error)) from error
    except Exception as error:  # the boundary to other people's models and to drivers
        remedy = "; finished shards are kept"
        if is_out_of_memory(error):
            remedy = ", with one image at a time: take a smaller encoder, or --device cpu"
        raise CannotContinueError(
            f"the encoder {plan.spec} failed: {explain(error)}{remedy}"
        ) from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return error is not None and any(words in text for words in _OUT_OF_MEMORY)


def free_device_memory() -> None:
    """Give back what torch keeps of a GPU's memory for later."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@functools.cache
def load_text_encoder(plan: EncoderPlan) -> EncodeTexts:
    """The function from n texts to float32 [n, dim]; made once in each worker.

    It is not exported to ONNX as the network for images is: its tokenizer needs torch anyhow.
    """
    return make_text_tower(plan.spec, plan.checkpoint, plan.device).encode


def _is_torch(network: Any) -> bool:
    return hasattr(network, "state_dict")


def _make_session(onnx: str, threads: int, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Raises CurateError for cuda where ONNX Runtime would fall back to the processor."""
    network = read_bytes(onnx) if is_url(onnx) else onnx
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        _check_cuda_provider()
        providers.insert(0, _CUDA_PROVIDER)
    session = make_session(network, threads=threads, providers=providers)
    if device == "cuda" and _CUDA_PROVIDER not in session.get_providers():
        raise CurateError(
            "ONNX Runtime could not start its CUDA provider: install the CUDA and cuDNN libraries "
            "that this version of onnxruntime-gpu asks for, or use --device cpu"
        )
    input_name = session.get_inputs()[0].name

    def forward(images: np.ndarray) -> np.ndarray:
        output = np.asarray(session.run(None, {input_name: images})[0], np.float32)
        # Another number of rows would be cut into vectors that mix images.
        has_row_per_image = output.ndim > 1 and len(output) == len(images)
        return output.reshape(len(images), -1) if has_row_per_image else output

    return forward


def check_runs_on_gpus(spec: str) -> None:
    """CurateError for an encoder that cannot run on a GPU, as far as its name and this machine's
    installation tell."""
    name = spec.partition(":")[0].partition("@")[0]
    if name == "pixels":
        raise no_network(spec)
    if name == "onnx":
        _check_cuda_provider()


def no_network(spec: str) -> CurateError:
    """The error for an encoder that is a function of NumPy arrays, where a GPU is to run it."""
    return CurateError(
        f"--device cuda, but the encoder {spec} has no network to run there: use --device cpu"
    )


def _check_cuda_provider() -> None:
    import onnxruntime

    if _CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise CurateError(
            "--device cuda, but this ONNX Runtime has no CUDA provider: install onnxruntime-gpu in "
            "place of onnxruntime, or use --device cpu"
        )


def _make_torch_forward(network: "torch.nn.Module", plan: EncoderPlan) -> Forward:
    """Torch on this machine's processor, where the network cannot be exported."""
    import torch

    torch.set_num_threads(plan.threads)
    network = network.eval().to(memory_format=torch.channels_last)
    mean = torch.tensor(plan.preprocessing.mean).view(1, 3, 1, 1) * 255
    std = torch.tensor(plan.preprocessing.std).view(1, 3, 1, 1) * 255

    @torch.inference_mode()
    def forward(images: Images) -> np.ndarray:
        batch = torch.from_numpy(np.stack(list(images)))[..., :3]
        # NHWC bytes viewed as NCHW are channels-last already: no copy.
        inputs = (batch.permute(0, 3, 1, 2).float() - mean) / std
        return np.asarray(network(inputs).float().flatten(1).numpy())

    return forward


def _export(network: "torch.nn.Module", preprocessing: Preprocessing, location: str) -> str | None:
    """Write the network as ONNX; None where that fails or does not give the same vectors."""
    if not is_url(location):
        return location if _export_to_path(network, preprocessing, Path(location)) else None
    with tempfile.TemporaryDirectory(prefix="curate-") as folder:
        path = Path(folder) / "encoder.onnx"
        if not _export_to_path(network, preprocessing, path):
            return None
        upload(path, location)
        return location


def _export_to_path(network: "torch.nn.Module", preprocessing: Preprocessing, path: Path) -> bool:
    import torch

    size = preprocessing.size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    attention_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no ONNX counterpart
    try:
        # The tracing exporter: 0.5 s, where the newer one needs 17 s. It prints its graph when it
        # fails.
        with warnings.catch_warnings(), _discard_stdout(), torch.no_grad():
            warnings.simplefilter("ignore")
            expected = network(images).float().flatten(1).numpy()
            torch.onnx.export(
                network,
                (images,),
                str(path),
                dynamo=False,
                opset_version=17,
                input_names=["images"],
                output_names=["vectors"],
                dynamic_axes={"images": {0: "n"}, "vectors": {0: "n"}},
            )
        exported = _make_session(str(path), 1, "cpu")(images.numpy())
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error).split("\n", 1)[0]
        log.info("torch runs this encoder: it could not be exported to ONNX (%s)", reason)
        return False
    finally:
        torch.backends.mha.set_fastpath_enabled(attention_fast_path)
    tolerance = 1e-3 * float(np.abs(expected).max())
    if not np.allclose(exported, expected, rtol=1e-3, atol=tolerance):
        log.info("torch runs this encoder: its ONNX export gave other vectors")
        return False
    return True


@contextlib.contextmanager
def _discard_stdout() -> Iterator[None]:
    """Discard what is written to stdout, by C++ code too: stdout is for names that shells read."""
    sys.stdout.flush()
    original = os.dup(1)
    try:
        with open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), 1)
        yield
    finally:
        os.dup2(original, 1)
        os.close(original)
