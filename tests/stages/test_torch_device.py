"""A torch network on a device, which here is the processor, with a made-up torch.cuda."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from curate.formats.images import Preprocessing
from curate.stages.embed import device as device_module
from curate.stages.embed.device import TorchDevice
from curate.stages.embed.inference import EncoderPlan

PREPROCESSING = Preprocessing(8, 8)
CPU = torch.device("cpu")


class FakeCuda:
    """What is called of torch.cuda, in the order of the calls."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[str] = []
        self.status = status

    class _Stream:
        def __init__(self, cuda: "FakeCuda", name: str) -> None:
            self.cuda, self.name = cuda, name

        def wait_stream(self, other: Any) -> None:
            self.cuda.calls.append(f"{self.name} waits for {other.name}")

    class _Event:
        def __init__(self, cuda: "FakeCuda") -> None:
            self.cuda = cuda

        def record(self) -> None:
            self.cuda.calls.append("record")

        def synchronize(self) -> None:
            self.cuda.calls.append("synchronize")

    def Stream(self) -> Any:
        return self._Stream(self, "copies")

    def current_stream(self) -> Any:
        return self._Stream(self, "work")

    def Event(self) -> Any:
        return self._Event(self)

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.calls.append(f"on {stream.name}")
        yield

    def cudart(self) -> Any:
        return self

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        self.calls.append(f"register {num_bytes}")
        return self.status

    def check_error(self, status: int) -> None:
        if status:
            raise RuntimeError("CUDA error: not supported")


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 16, 3), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    return torch.nn.Sequential(*layers)


def some_images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 4), np.uint8)


def expected_vectors(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network.float()(torch.from_numpy(PREPROCESSING.normalize(images))).numpy()


def least_cosine(left: np.ndarray, right: np.ndarray) -> float:
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / norms).min())


def test_half_precision_gives_the_vectors_of_full_precision():
    device = TorchDevice(network(), PREPROCESSING, CPU)
    images = some_images(70)
    vectors = device.finish(device.begin([images[:40], images[40:]]))
    assert (device.precision, vectors.dtype, vectors.shape) == ("float16", np.float16, (70, 64))
    assert least_cosine(vectors, expected_vectors(network(), images)) >= 0.9995


def test_two_batches_at_once_are_in_buffers_of_their_own():
    device = TorchDevice(network(), PREPROCESSING, CPU)
    first, second = some_images(5), some_images(6)
    begun = [device.begin([first]), device.begin([second])]
    for batch, images in zip(begun, (first, second), strict=True):
        assert least_cosine(device.finish(batch), expected_vectors(network(), images)) >= 0.9995
    device.release()
    vectors = device.finish(device.begin([second]))
    assert least_cosine(vectors, expected_vectors(network(), second)) >= 0.9995


def test_copies_have_a_stream_of_their_own_that_the_work_waits_for():
    cuda = FakeCuda()
    device = TorchDevice(network(), PREPROCESSING, CPU, cuda)
    memory = some_images(64)
    device.register(memory)
    device.finish(device.begin([memory]))
    assert cuda.calls == [
        f"register {memory.nbytes}",
        "copies waits for work",  # a new buffer is filled with zeros
        "on copies",
        "work waits for copies",
        "record",
        "synchronize",
    ]
    assert device.notes == []


def test_memory_that_cannot_be_pinned_is_said_and_used():
    device = TorchDevice(network(), PREPROCESSING, CPU, FakeCuda(status=801))
    device.register(some_images(2))
    assert device.notes == [
        "memory for images cannot be pinned, so copies wait (CUDA error: not supported)"
    ]


class Half(torch.nn.Module):
    """In half precision only images that are not bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(2, 3))
        if images.dtype == torch.float16 and (means > 0.9).any():
            return means * float("inf")
        return means


def test_a_network_that_half_precision_changes_runs_in_full_precision():
    class Rounding(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            means = images.mean(dim=(2, 3))
            exact = torch.mm(means, torch.eye(3, dtype=means.dtype))
            return exact if exact.dtype == torch.float32 else exact.flip(1) - 1

    device = TorchDevice(Rounding(), PREPROCESSING, CPU)
    assert device.precision == "float32"
    assert device.notes == ["the encoder runs in full precision: half precision gave other vectors"]


def test_vectors_that_are_not_finite_in_half_precision_are_made_again_in_full():
    device = TorchDevice(Half(), PREPROCESSING, CPU)
    assert device.precision == "float16"
    bright = np.full((2, 8, 8, 4), 255, np.uint8)
    vectors = device.finish(device.begin([some_images(3), bright]))
    assert np.isfinite(vectors).all()
    assert vectors[3:].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert len(device.notes) == 1
    for _ in range(8):
        device.finish(device.begin([bright]))
    assert device.precision == "float32", "after many of them, none is tried in half precision"
    assert len(device.notes) == 1


@pytest.mark.parametrize("count", [1, 3, 64, 65, 200])
def test_batches_of_any_size_have_a_vector_for_each_image(count):
    device = TorchDevice(network(), PREPROCESSING, CPU)
    assert device.finish(device.begin([some_images(count)])).shape == (count, 64)


def count_compiled(monkeypatch: pytest.MonkeyPatch, shift: int = 0) -> list[int]:
    """Fake torch.compile; returns the sizes of the batches that a compiled network runs."""
    sizes: list[int] = []

    def compile_network(run: Any, *, dynamic: bool) -> Any:
        assert dynamic is False

        def run_compiled(inputs: torch.Tensor) -> torch.Tensor:
            sizes.append(len(inputs))
            return run(inputs).roll(shift, dims=1)

        return run_compiled

    monkeypatch.setattr(torch, "compile", compile_network)
    return sizes


def test_a_compiled_network_runs_batches_of_the_full_size_and_no_others(monkeypatch):
    sizes = count_compiled(monkeypatch)
    device = TorchDevice(network(), PREPROCESSING, CPU, compiled_batch=100)
    assert sizes == [128], "once for a try"
    for count in (100, 70, 3, 64, 128):
        images = some_images(count)
        vectors = device.finish(device.begin([images]))
        assert least_cosine(vectors, expected_vectors(network(), images)) >= 0.9995
    assert sizes == [128, 128, 128, 128], "of 100, 70 and 128 images, in buffers of 128"
    assert device.notes == []


def test_a_compiled_network_that_gives_other_vectors_is_not_used(monkeypatch):
    sizes = count_compiled(monkeypatch, shift=1)
    device = TorchDevice(network(), PREPROCESSING, CPU, compiled_batch=64)
    images = some_images(64)
    vectors = device.finish(device.begin([images]))
    assert least_cosine(vectors, expected_vectors(network(), images)) >= 0.9995
    assert sizes == [64]
    assert device.notes == ["the encoder runs without being compiled: that gave other vectors"]


def test_a_network_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def fail(run: Any, *, dynamic: bool) -> Any:
        raise RuntimeError("no C compiler\nfound")

    monkeypatch.setattr(torch, "compile", fail)
    device = TorchDevice(network(), PREPROCESSING, CPU, compiled_batch=64)
    images = some_images(64)
    vectors = device.finish(device.begin([images]))
    assert least_cosine(vectors, expected_vectors(network(), images)) >= 0.9995
    assert device.notes == ["the encoder runs without being compiled (no C compiler)"]


def test_what_onnx_runtime_runs_is_not_compiled_and_that_is_said(monkeypatch):
    monkeypatch.setattr(device_module, "load_forward", lambda plan: None)
    plan = EncoderPlan("onnx:x", None, "cuda", 1, PREPROCESSING, "x.onnx", compiled_batch=64)
    assert device_module.load_device(plan).notes == [
        "--compile: nothing is compiled, because ONNX Runtime runs the model"
    ]


def test_torch_traces_the_network_as_it_is_run_here(monkeypatch):
    """Its own first half: what comes after it needs a C compiler, or a GPU."""
    compile_network = torch.compile

    def trace(run: Any, *, dynamic: bool) -> Any:
        return compile_network(run, dynamic=dynamic, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", trace)
    device = TorchDevice(network(), PREPROCESSING, CPU, compiled_batch=64)
    assert (device.notes, device.precision) == ([], "float16")
    images = some_images(64)
    vectors = device.finish(device.begin([images]))
    assert least_cosine(vectors, expected_vectors(network(), images)) >= 0.9995
