"""An encoder on a GPU, fed with batches of bytes while it works on earlier ones.

Not yet run on hardware: the tests run it on a processor, with a fake of torch.cuda.
"""

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

from curate.encoders import make_encoder
from curate.encoders.onnx import explain
from curate.errors import CurateError
from curate.formats.images import Preprocessing
from curate.stages.embed.inference import (
    EncoderPlan,
    Forward,
    free_device_memory,
    load_forward,
    no_network,
)

if TYPE_CHECKING:
    import torch

    _RunNetwork = Callable[[torch.Tensor], torch.Tensor]

# Batches are filled up to a multiple of this, so that there are few shapes to choose kernels for.
_ROWS = 64
# How far the vectors of half precision may be from those of full precision.
_LEAST_COSINE = 0.9995
_BUFFERS = 2  # a batch is copied to the device while it works on the one before
# From so many batches on that were encoded twice, if they are this share of all, none is in half.
_MAX_REPEATED, _REPEATED_SHARE = 8, 0.1


class Device(Protocol):
    """What encodes images: one batch is begun before the one before is finished.

    A batch is a list of arrays, each uint8 [n, size, size, 4]; they may not change before the batch
    is finished, which gives float16 [sum of n, dim]. At most two may be begun at once.
    """

    notes: list[str]  # for the user

    def begin(self, images: list[np.ndarray]) -> Any: ...

    def finish(self, begun: Any) -> np.ndarray: ...

    def register(self, memory: np.ndarray) -> None:
        """Prepare memory from which images will come, so that copies need not wait."""
        ...

    def release(self) -> None:
        """Give back memory that only larger batches need. No batch may be begun."""
        ...


@functools.cache
def load_device(plan: EncoderPlan) -> Device:
    """The encoder of a plan on its device; made once in each process. Raises CurateError."""
    if plan.onnx is not None:
        host = HostDevice(load_forward(plan))
        if plan.compiled_batch:
            host.notes.append("--compile: nothing is compiled, because ONNX Runtime runs the model")
        return host
    network = make_encoder(plan.spec, plan.checkpoint).network
    if not hasattr(network, "state_dict"):
        raise no_network(plan.spec)
    import torch

    return TorchDevice(
        cast("torch.nn.Module", network),
        plan.preprocessing,
        torch.device(plan.device),
        compiled_batch=plan.compiled_batch,
    )


def measure_dim(plan: EncoderPlan) -> int:
    """The length of the encoder's vectors, by a first batch, where the encoder is to run.

    Raises CurateError where the model cannot run, so that it is said once and not for every shard.
    """
    size = plan.preprocessing.size
    # Two images, because a model that was exported for one at a time runs with one.
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 4), dtype=np.uint8)
    try:
        if plan.device == "cpu":
            vectors = load_forward(plan)(pixels)
        else:
            device = load_device(plan)
            vectors = device.finish(device.begin([pixels]))
    except CurateError:
        raise
    except Exception as error:  # the boundary to other people's models
        reason = explain(error)
        raise CurateError(
            f"the encoder {plan.spec} cannot run on two images of {size} × {size}: {reason}"
        ) from error
    if vectors.ndim != 2 or len(vectors) != len(pixels) or not vectors.shape[1]:
        raise CurateError(
            f"the encoder {plan.spec} gives an array of shape {list(vectors.shape)} for two "
            "images: a vector for each is needed, [2, dim]"
        )
    return int(vectors.shape[1])


class HostDevice:
    """A function that takes images in this process' memory, as ONNX Runtime does."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.notes: list[str] = []

    def begin(self, images: list[np.ndarray]) -> list[np.ndarray]:
        return images

    def finish(self, begun: list[np.ndarray]) -> np.ndarray:
        images = [image for array in begun for image in array]
        with np.errstate(over="ignore"):
            return self._forward(images).astype(np.float16)

    def register(self, memory: np.ndarray) -> None:
        pass

    def release(self) -> None:
        pass


def _padded(count: int) -> int:
    """The rows of a buffer for so many images: there are few such numbers."""
    return -(-count // _ROWS) * _ROWS if count > _ROWS else 1 << (count - 1).bit_length()


class _Batch(NamedTuple):
    """A batch that was begun: its images, its outputs on the host, and the event after them."""

    images: list[np.ndarray]
    vectors: "torch.Tensor"
    is_finite: "torch.Tensor"
    done: Any


class TorchDevice:
    """A torch network in half precision, where that gives the vectors of full precision.

    Bytes are copied on a stream of their own into one of two buffers on the device, and normalised
    there. `cuda` is torch.cuda, or a fake of it; None for a device without streams. With
    `compiled_batch`, batches of so many images run through what torch.compile makes of the network.
    """

    def __init__(
        self,
        network: "torch.nn.Module",
        preprocessing: Preprocessing,
        device: "torch.device",
        cuda: Any = None,
        compiled_batch: int | None = None,
    ) -> None:
        import torch

        self.notes: list[str] = []
        self._torch, self._device, self._size = torch, device, preprocessing.size
        self._cuda = torch.cuda if device.type == "cuda" else cuda
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        self._mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1) * 255
        self._copies: Any = self._cuda.Stream() if self._cuda else None
        self._buffers: list[torch.Tensor | None] = [None] * _BUFFERS
        self._next_buffer = 0
        self._num_batches = self._num_repeated = 0
        self._full = network.eval()
        self._run_network, self.precision = self._choose_precision()
        self._compiled: _RunNetwork | None = None
        self._compiled_rows = 0
        if compiled_batch:
            self._compile(_padded(compiled_batch))

    def begin(self, images: list[np.ndarray]) -> _Batch:
        count = sum(map(len, images))
        with self._torch.inference_mode():
            buffer = self._take_buffer(count)
            self._copy(images, buffer)
            run_network = self._compiled if len(buffer) == self._compiled_rows else None
            vectors, is_finite = self._encode(run_network or self._run_network, buffer, count)
            vectors, is_finite = self._to_host(vectors), self._to_host(is_finite)
        done = None
        if self._cuda:
            done = self._cuda.Event()
            done.record()
        return _Batch(images, vectors, is_finite, done)

    def finish(self, begun: _Batch) -> np.ndarray:
        if begun.done is not None:
            begun.done.synchronize()
        self._num_batches += 1
        vectors = begun.vectors
        if not begun.is_finite.item() and self.precision != "float32":
            vectors = self._repeat_in_full_precision(begun.images)
        return np.asarray(vectors.numpy())

    def register(self, memory: np.ndarray) -> None:
        """Pin the memory where it is. Without, copies are slower and nothing else changes."""
        if self._cuda is None:
            return
        try:
            status = self._cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)
            self._cuda.check_error(int(status))
        except RuntimeError as error:
            reason = str(error).split("\n", 1)[0]
            self.notes.append(f"memory for images cannot be pinned, so copies wait ({reason})")

    def release(self) -> None:
        self._buffers = [None] * _BUFFERS
        free_device_memory()

    def _take_buffer(self, count: int) -> "torch.Tensor":
        """A buffer on the device with a row for each image, and a few more.

        Nothing uses it any more, because at most two batches are begun at once.
        """
        rows = _padded(count)
        buffer = self._buffers[self._next_buffer]
        if buffer is None or len(buffer) < rows:
            self._buffers[self._next_buffer] = buffer = None  # so that its memory can be had again
            shape = (rows, self._size, self._size, 4)
            buffer = self._torch.zeros(shape, dtype=self._torch.uint8, device=self._device)
            self._buffers[self._next_buffer] = buffer
            if self._cuda:  # the zeros are written before the images are
                self._copies.wait_stream(self._cuda.current_stream())
        self._next_buffer = (self._next_buffer + 1) % _BUFFERS
        return buffer[:rows]

    def _copy(self, images: list[np.ndarray], buffer: "torch.Tensor") -> None:
        """Onto the device, while it works on the batch before."""
        with self._cuda.stream(self._copies) if self._cuda else contextlib.nullcontext():
            start = 0
            for array in images:
                rows = buffer[start : start + len(array)]
                rows.copy_(self._torch.from_numpy(array), non_blocking=True)
                start += len(array)
        if self._cuda:
            self._cuda.current_stream().wait_stream(self._copies)

    def _encode(
        self, run_network: "_RunNetwork", images: "torch.Tensor", count: int
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The first images of uint8 [n, size, size, 4]: float16 [count, dim], and whether these
        are finite."""
        torch = self._torch
        # NHWC bytes viewed as NCHW are channels-last; the fourth channel has no meaning.
        channels_last = torch.channels_last
        inputs = images.permute(0, 3, 1, 2)[:, :3].to(torch.float32, memory_format=channels_last)
        inputs.sub_(self._mean).div_(self._std)
        vectors = run_network(inputs)[:count].flatten(1).to(torch.float32).to(torch.float16)
        return vectors, torch.isfinite(vectors).all()

    def _to_host(self, values: "torch.Tensor") -> "torch.Tensor":
        if self._device.type != "cuda":
            return values
        host = self._torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)

    def _choose_precision(self) -> "tuple[_RunNetwork, str]":
        """The fastest way to run the network that gives the vectors of full precision.

        Half-precision weights, or full ones of which each operator takes halves (autocast), or
        bfloat16, whose range is that of full precision; last, full precision itself.
        """
        torch, kind = self._torch, self._device.type
        random = np.random.default_rng(0)
        shape = (2, self._size, self._size, 4)
        images = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8)).to(self._device)

        def halves() -> "_RunNetwork":
            half = copy.deepcopy(self._full).half().to(memory_format=torch.channels_last)
            return lambda inputs: half(inputs.half())

        def autocast(dtype: Any) -> "_RunNetwork":
            run_network: _RunNetwork = torch.autocast(kind, dtype=dtype)(self._full)
            return run_network

        candidates: dict[str, Callable[[], _RunNetwork]] = {
            "float16": halves,
            "float16 by autocast": lambda: autocast(torch.float16),
            "bfloat16 by autocast": lambda: autocast(torch.bfloat16),
        }
        with torch.inference_mode():
            expected = self._encode(self._in_full_precision(), images, len(images))[0].float()
        for precision, make in candidates.items():
            try:
                run_network = make()
                with torch.inference_mode():
                    vectors, is_finite = self._encode(run_network, images, len(images))
            except (RuntimeError, TypeError, ValueError):  # an operator that has no such precision
                continue
            cosines = torch.cosine_similarity(vectors.float(), expected)
            if is_finite.item() and cosines.min().item() >= _LEAST_COSINE:
                if precision == "float16":
                    self._full.to("cpu")
                return run_network, precision
        self.notes.append("the encoder runs in full precision: half precision gave other vectors")
        return self._in_full_precision(), "float32"

    def _compile(self, rows: int) -> None:
        """Compile the network for batches of so many images, unless that gives other vectors.

        For every other number torch would compile again; such batches are few, and run as before.
        """
        torch = self._torch
        random = np.random.default_rng(1)
        shape = (rows, self._size, self._size, 4)
        images = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8)).to(self._device)
        try:
            compiled: _RunNetwork = torch.compile(self._run_network, dynamic=False)
            with torch.inference_mode():
                vectors, is_finite = self._encode(compiled, images, rows)
                expected, _ = self._encode(self._run_network, images, rows)
        except Exception as error:  # the boundary to compilers, which fail in many ways
            self.notes.append(f"the encoder runs without being compiled ({explain(error)})")
            return
        cosines = torch.cosine_similarity(vectors.float(), expected.float())
        if not is_finite.item() or cosines.min().item() < _LEAST_COSINE:
            self.notes.append("the encoder runs without being compiled: that gave other vectors")
            return
        self._compiled, self._compiled_rows = compiled, rows

    def _in_full_precision(self) -> "_RunNetwork":
        self._full.to(device=self._device, memory_format=self._torch.channels_last)  # type: ignore[call-overload]
        return self._full

    def _repeat_in_full_precision(self, images: list[np.ndarray]) -> "torch.Tensor":
        """The vectors of a batch that has some beyond half precision on the way to them."""
        self._num_repeated += 1
        full = self._in_full_precision()
        batch = self._torch.from_numpy(np.concatenate(images)).to(self._device)
        with self._torch.inference_mode():
            vectors = self._encode(full, batch, len(batch))[0].to("cpu")
        if self._num_repeated == 1:
            self.notes.append(
                "half precision gave vectors that are not finite: "
                "such batches are encoded again in full precision"
            )
        is_frequent = self._num_repeated > _REPEATED_SHARE * self._num_batches
        if self._num_repeated >= _MAX_REPEATED and is_frequent:
            self._run_network, self.precision, self._compiled = full, "float32", None
        return vectors
