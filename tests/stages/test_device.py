"""Embedding beside a GPU, with a made-up one: what feeds it, what it is handed, what goes wrong.

The decoders are real processes; only the device and the count of GPUs are made up.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import load_vectors, png, rows, same_files, write_corpus, write_shard
from onnx import TensorProto, helper

from curate.catalog.catalog import Catalog
from curate.encoders import Encoder, encoder, encoders
from curate.encoders.pixels import flatten
from curate.errors import CurateError
from curate.execution import engine, local, tasks
from curate.execution.types import Cores, Devices, Outcome, Resources
from curate.formats.images import Preprocessing
from curate.stages.embed import device, feeding, inference, worker
from curate.stages.embed.stage import embed

SIZE = 8


class OutOfMemoryError(RuntimeError):
    def __init__(self) -> None:
        super().__init__("CUDA out of memory. Tried to allocate 2.00 GiB")


class FakeDevice:
    """A GPU that takes so many seconds for an image, and computes what the encoder does on a CPU.

    It checks that it is handed what it may be handed, and holds `capacity` images at most.
    """

    def __init__(self, seconds: float = 0.0, capacity: int = 1 << 30) -> None:
        self.seconds, self.capacity = seconds, capacity
        self.notes: list[str] = []
        self.batches: list[int] = []
        self.busy_until = 0.0
        self.num_begun = self.num_refused = 0
        self.is_broken = False

    def begin(self, images: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray, float]:
        assert all(array.shape[1:] == (SIZE, SIZE, 4) for array in images)
        assert all(array.dtype == np.uint8 for array in images)
        count = sum(map(len, images))
        if self.is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nsee the log")
        if count > self.capacity:
            self.num_refused += 1
            raise OutOfMemoryError
        self.num_begun += 1
        assert self.num_begun <= 2
        self.batches.append(count)
        self.busy_until = max(self.busy_until, time.monotonic()) + count * self.seconds
        return images, np.concatenate(images), self.busy_until

    def finish(self, begun: tuple[list[np.ndarray], np.ndarray, float]) -> np.ndarray:
        images, copied, finished = begun
        time.sleep(max(finished - time.monotonic(), 0))
        self.num_begun -= 1
        assert np.array_equal(np.concatenate(images), copied), "they changed while it worked"
        preprocessing = Preprocessing(SIZE, SIZE, "squash")
        return flatten(preprocessing.normalize(copied)).astype(np.float16)

    def register(self, memory: np.ndarray) -> None:
        assert memory.flags.c_contiguous

    def release(self) -> None:
        self.num_begun = 0


@pytest.fixture
def tiny() -> Iterator[str]:
    """An encoder like `pixels` that claims to have a network."""

    @encoder
    def tiny(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
        return Encoder(flatten, Preprocessing(SIZE, SIZE, "squash"), "no weights")

    yield "tiny"
    del encoders["tiny"]


@pytest.fixture
def use_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """A function that makes this machine one with a GPU and two cores."""

    def use(fake: Any) -> None:
        monkeypatch.setattr(local, "find_devices", lambda device: Devices("cuda", (0,)))
        monkeypatch.setattr(local, "count_cores", lambda device="cpu": Cores(2, 2))
        monkeypatch.setattr(device, "load_device", lambda plan: fake)
        monkeypatch.setattr(feeding, "load_device", lambda plan: fake)

    yield use
    feeding.close_feeder()
    inference.batch_limits.cache_clear()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Five shards of 24 images, some of which are broken, and one that ends early."""
    folder = tmp_path_factory.mktemp("corpus")
    shards = write_corpus(folder, num_shards=4, per_shard=24)
    samples = [
        (f"{number:03d}", {"png": b"broken" if number % 7 == 3 else png(number), "cls": b"0"})
        for number in range(24)
    ]
    shards.append(str(write_shard(folder / "broken.tar", samples)))
    cut = folder / "cut.tar"
    cut.write_bytes(Path(shards[0]).read_bytes()[:12_000])
    return [*shards, str(cut)]


@pytest.fixture(scope="module")
def by_cpu(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    catalog = Catalog(tmp_path_factory.mktemp("cpu") / "catalog")
    embed(catalog, corpus, encoder="pixels", name="tiny", workers=1, captions=True)
    return catalog


def test_a_gpu_and_its_decoders_give_the_files_of_one_cpu(
    corpus, by_cpu, tiny, use_device, tmp_path, caplog, monkeypatch
):
    from curate.encoders import _text_towers

    monkeypatch.setitem(_text_towers, "tiny", _text_towers["pixels"])
    fake = FakeDevice(seconds=2e-4)
    use_device(fake)
    catalog = Catalog(tmp_path / "catalog")
    with caplog.at_level("INFO", "curate"):
        embed(catalog, corpus, encoder=tiny, captions=True, batch_size=32, profile=True)
    sql = "select * from samples order by sample_id"
    assert rows(catalog, sql) == rows(by_cpu, sql)
    assert np.array_equal(load_vectors(catalog, "tiny"), load_vectors(by_cpu, "tiny"))
    same_files(Path(catalog.embedding_folder("tiny")), Path(by_cpu.embedding_folder("tiny")))
    failures = "select key, stage, error from failures order by all"
    assert rows(catalog, failures) == rows(by_cpu, failures)
    assert max(fake.batches) <= 32
    assert {"wait for images", "encode", "decode", "read", "write", "wait for the device"} <= {
        kind.strip().rpartition(" ")[0]
        for line in caplog.messages
        if line.startswith("profile: ")
        for kind in line.split(":", 2)[2].split(",")
    }


def test_a_gpu_compiles_for_full_batches_and_a_processor_says_that_it_does_not(
    corpus, tiny, use_device, tmp_path, caplog, monkeypatch
):
    with caplog.at_level("INFO", "curate"):
        embed(tmp_path / "cpu", corpus[:1], encoder="pixels", workers=1, compile_network=True)
    assert "--compile: nothing is compiled, because no GPU is used" in caplog.messages
    use_device(FakeDevice())
    plans: list[inference.EncoderPlan] = []

    def load(plan: inference.EncoderPlan) -> FakeDevice:
        plans.append(plan)
        return FakeDevice()

    monkeypatch.setattr(device, "load_device", load)
    for name, compile_network in (("compiled", True), ("plain", False)):
        embed(
            tmp_path / name,
            corpus[:1],
            encoder=tiny,
            batch_size=32,
            compile_network=compile_network,
        )
    assert [plan.compiled_batch for plan in plans] == [32, None]


def test_out_of_memory_halves_the_batch_says_so_once_and_damages_no_shard(
    corpus, by_cpu, tiny, use_device, tmp_path, caplog
):
    fake = FakeDevice(seconds=1e-3, capacity=20)
    use_device(fake)
    catalog = Catalog(tmp_path / "catalog")
    with caplog.at_level("INFO", "curate"):
        embed(catalog, corpus, encoder=tiny, batch_size=64)
    assert np.array_equal(load_vectors(catalog, "tiny"), load_vectors(by_cpu, "tiny"))
    assert rows(catalog, "select count(*) from failures") == rows(
        by_cpu, "select count(*) from failures"
    )
    (note,) = (line for line in caplog.messages if "out of memory" in line)
    assert "images at once" in note
    halved = next(number for number, count in enumerate(fake.batches) if count > 2)
    assert max(fake.batches[halved:]) <= 20
    assert fake.num_refused <= 3, "it is remembered"


def test_a_device_that_fails_ends_the_run_in_one_line_and_damages_no_shard(
    corpus, tiny, use_device, tmp_path
):
    fake = FakeDevice()
    use_device(fake)
    catalog = Catalog(tmp_path / "catalog")
    begin = fake.begin

    def break_after_the_first(images: list[np.ndarray]) -> Any:
        fake.is_broken = len(fake.batches) >= 2
        return begin(images)

    fake.begin = break_after_the_first  # type: ignore[method-assign]
    with pytest.raises(CurateError, match=r"^the encoder tiny failed: CUDA error: an illegal"):
        embed(catalog, corpus, encoder=tiny, batch_size=16)
    assert rows(catalog, "select count(*) from failures where sample_id is null") == [(0,)]


def test_a_decoder_that_dies_ends_the_run_and_the_next_one_goes_on(
    corpus, by_cpu, tiny, use_device, tmp_path
):
    fake = FakeDevice()
    use_device(fake)
    begin = fake.begin

    def kill_a_decoder(images: list[np.ndarray]) -> Any:
        for _, feeder in feeding._open:
            feeder._decoders[0].process.kill()
        return begin(images)

    fake.begin = kill_a_decoder  # type: ignore[method-assign]
    catalog = Catalog(tmp_path / "catalog")
    with pytest.raises(CurateError, match="decodes images died, possibly out of memory: .* fewer"):
        embed(catalog, corpus, encoder=tiny, batch_size=16)
    assert rows(catalog, "select count(*) from failures where sample_id is null") == [(0,)]
    fake.begin = begin  # type: ignore[method-assign]
    embed(catalog, corpus, encoder=tiny, batch_size=16)
    assert np.array_equal(load_vectors(catalog, "tiny"), load_vectors(by_cpu, "tiny"))


def test_the_driver_of_a_cluster_needs_no_gpu(corpus, tiny, monkeypatch, tmp_path):
    """A Ray cluster with GPUs, and a driver without: whatever needs the device runs in a task."""
    is_worker = False

    class Cluster:
        @staticmethod
        def find_devices(device: str) -> Devices:
            return Devices("cuda", (0,))

        @staticmethod
        def count_cores(device: str = "cpu") -> Cores:
            return Cores(1, 1)

        @staticmethod
        def map(
            task: Any, items: Any, resources: Resources, advance: Any
        ) -> Iterator[tuple[int, Outcome]]:
            nonlocal is_worker
            assert resources.gpus == (0,)
            for position, item in enumerate(items):
                is_worker = True
                outcome = tasks.run_task(task, item)
                is_worker = False
                yield position, outcome

    def load_in_a_worker(plan: inference.EncoderPlan) -> FakeDevice:
        assert is_worker, "the driver loaded the encoder onto its own GPU"
        return FakeDevice()

    monkeypatch.setattr(engine, "_current", Cluster)
    monkeypatch.setattr(device, "load_device", load_in_a_worker)
    monkeypatch.setattr(feeding, "load_device", load_in_a_worker)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, corpus[:1], encoder=tiny)
    assert rows(catalog, "select count(*) from samples") == [(24,)]


def save_onnx(path: Path) -> str:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, SIZE, SIZE))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "g", [given], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return f"onnx:{path}"


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has a GPU; libraries that could use it are as they are."""
    monkeypatch.setattr(local, "find_devices", lambda device: Devices("cuda", (0,)))


def test_onnx_on_cuda_without_a_cuda_provider_is_refused(tmp_path, corpus, with_gpu):
    spec = save_onnx(tmp_path / "model.onnx")
    catalog = Catalog(tmp_path / "catalog")
    with pytest.raises(CurateError, match=r"no CUDA provider: install onnxruntime-gpu .* cpu"):
        embed(catalog, corpus, encoder=spec, device="cuda")
    assert rows(catalog, "select count(*) from failures") == [(0,)]


def test_a_cuda_provider_that_cannot_start_is_refused(tmp_path, monkeypatch):
    """ONNX Runtime itself goes on without it, and warns."""
    import onnxruntime

    spec = save_onnx(tmp_path / "model.onnx")
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    make_session = inference.make_session
    monkeypatch.setattr(
        inference,
        "make_session",
        lambda network, threads, providers: make_session(
            network, threads=threads, providers=providers[1:]
        ),
    )
    with pytest.raises(CurateError, match="could not start its CUDA provider"):
        inference._make_session(spec.removeprefix("onnx:"), 1, "cuda")


@pytest.mark.parametrize("name", ["onnx", "pixels"])
def test_auto_runs_on_the_processor_what_no_gpu_runs_and_says_so(
    name, tmp_path, corpus, with_gpu, caplog
):
    spec = save_onnx(tmp_path / "model.onnx") if name == "onnx" else name
    catalog = Catalog(tmp_path / "catalog")
    with caplog.at_level("INFO", "curate"):
        embed(catalog, corpus[:1], encoder=spec, workers=1)
    assert any(line.startswith("on the processor: ") for line in caplog.messages)
    assert rows(catalog, "select device from runs") == [("cpu",)]


def test_an_encoder_without_a_network_is_refused_on_cuda(tmp_path, corpus, with_gpu):
    with pytest.raises(CurateError, match="pixels has no network to run there"):
        embed(tmp_path / "catalog", corpus, encoder="pixels", device="cuda")


def test_a_model_that_fails_on_a_processor_ends_the_run_and_damages_no_shard(
    corpus, tiny, tmp_path, monkeypatch
):
    num_batches = 0

    def forward(images: Any) -> np.ndarray:
        nonlocal num_batches
        num_batches += 1
        if num_batches > 3:
            raise RuntimeError("the model is\nbroken")
        return np.zeros((len(images), 4), np.float32)

    for module in (device, worker):
        monkeypatch.setattr(module, "load_forward", lambda plan: forward)
    catalog = Catalog(tmp_path / "catalog")
    with pytest.raises(CurateError, match=r"tiny failed: the model is; finished shards are kept"):
        embed(catalog, corpus, encoder=tiny, workers=1)
    assert rows(catalog, "select count(*) from failures where sample_id is null") == [(0,)]


def test_one_image_that_does_not_fit_ends_the_run_with_a_remedy(corpus, tiny, use_device, tmp_path):
    fake = FakeDevice()
    use_device(fake)

    def refuse(images: list[np.ndarray]) -> Any:
        if fake.num_begun or sum(map(len, images)) == 2:  # the first batch is of two
            return FakeDevice.begin(fake, images)
        raise OutOfMemoryError

    fake.begin = refuse  # type: ignore[method-assign]
    with pytest.raises(CurateError, match="out of memory.*with one image at a time: take a small"):
        embed(tmp_path / "catalog", corpus[:1], encoder=tiny)
