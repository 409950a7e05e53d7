"""Models that cannot be run, and weights that are damaged: one line, before any shard is read."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import rows, run_curate
from onnx import TensorProto, helper, numpy_helper

from curate.catalog.catalog import Catalog
from curate.encoders import encoder, encoders, make_encoder
from curate.errors import CurateError
from curate.stages.embed import worker
from curate.stages.embed.stage import embed

ONES = numpy_helper.from_array(np.ones((192, 2), np.float32), "w")


def constant(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def save_model(
    path: Path,
    *nodes: onnx.NodeProto,
    shape: tuple = ("n", 3, 8, 8),
    type: int = TensorProto.FLOAT,
    weights: tuple[onnx.TensorProto, ...] = (),
    inputs: int = 1,
    **options: object,
) -> str:
    """A model whose nodes lead from x to y; returns its name as an encoder."""
    given = [helper.make_tensor_value_info(name, type, shape) for name in ("x", "z")[:inputs]]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", given, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, **options)
    return f"onnx:{path}"


def node(kind: str, *names: str, **attributes: object) -> onnx.NodeProto:
    """A node; the last of the names is that of its output."""
    return helper.make_node(kind, names[:-1], names[-1:], **attributes)


FLATTEN = node("Flatten", "x", "y")
POOL = (node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "y"))
NUMBER = numpy_helper.from_array(np.ones((1, 3), np.float32))
BROKEN = {
    "no inputs": ({"nodes": (node("Constant", "y", value=NUMBER),), "inputs": 0}, "has 0 inputs"),
    "two inputs": ({"nodes": (node("Add", "x", "z", "y"),), "inputs": 2}, "2 inputs (x, z)"),
    "a scalar": ({"nodes": (node("ReduceSum", "x", "y", keepdims=0),)}, "shape []"),
    "one row": (
        {"nodes": (node("ReduceSum", "x", "a", "y"),), "weights": (constant("a", 0),)},
        "[1,",
    ),
    "no numbers": (
        {
            "nodes": (node("Flatten", "x", "f"), node("Slice", "f", "a", "a", "a", "y")),
            "weights": (constant("a", 1),),
        },
        "shape [2, 0]",
    ),
    "batches of one": ({"nodes": POOL, "shape": (1, 3, 8, 8)}, "batches of 1 only"),
    "grey images": ({"nodes": POOL, "shape": ("n", 1, 8, 8)}, "takes float [n, 3, size, size]"),
    "channels last": ({"nodes": (FLATTEN,), "shape": ("n", 8, 8, 3)}, "float [n, 3, size, size]"),
    "bytes": ({"nodes": (FLATTEN,), "type": TensorProto.UINT8}, "tensor(uint8)"),
    "no square": ({"nodes": POOL, "shape": ("n", 3, 8, 9)}, "images of 8 × 9"),
    "an open size": ({"nodes": POOL, "shape": ("n", 3, "h", "w")}, "leaves the image size open"),
    "another size within": (
        {
            "nodes": (node("Flatten", "x", "f"), node("MatMul", "f", "w", "y")),
            "shape": ("n", 3, "h", "w"),
            "weights": (ONES,),
        },
        "cannot run on two images of 10 × 10",
    ),
    "a huge constant": (
        {
            "nodes": (
                node("ConstantOfShape", "s", "c"),
                node("ReduceSum", "c", "r", keepdims=0),
                node("Flatten", "x", "f"),
                node("Add", "f", "r", "y"),
            ),
            "weights": (constant("s", 1 << 45),),
        },
        "cannot run on two images",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_run_is_said_once_before_any_shard(
    tmp_path, shards, name, monkeypatch, capfd
):
    given, reason = BROKEN[name]
    options = {key: value for key, value in given.items() if key != "nodes"}
    spec = save_model(tmp_path / "model.onnx", *given["nodes"], **options)
    spec += "@10" if name == "another size within" else ""
    monkeypatch.setattr(worker.EmbedShards, "__call__", lambda *_: pytest.fail("a shard was read"))
    catalog = Catalog(tmp_path / "catalog")
    with pytest.raises(CurateError) as error:
        embed(catalog, shards, encoder=spec, workers=1)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == "", "ONNX Runtime writes nothing"
    assert rows(catalog, "select count(*) from embeddings") == [(0,)]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08" * 100])
def test_a_file_that_is_no_model_is_one_line(tmp_path, content, capfd):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CurateError, match="is no ONNX model that can be run: Load model"):
        make_encoder(f"onnx:{tmp_path / 'model.onnx'}")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 99, b"\x80\x02."])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("spec", ["torchvision:resnet18", "efficientnet_lite0"])
def test_damaged_weights_are_one_line(tmp_path, content, ending, spec):
    checkpoint = tmp_path / f"weights.{ending}"
    checkpoint.write_bytes(content)
    with pytest.raises(CurateError, match=r"weights\.|cannot be loaded") as error:
        make_encoder(spec, str(checkpoint))
    assert "\n" not in str(error.value)


def test_whatever_an_encoder_raises_is_one_line(shards, tmp_path):
    @encoder
    def broken(variant: str, checkpoint: str | None, size: int | None) -> None:
        raise ZeroDivisionError("first\nsecond")

    try:
        with pytest.raises(
            CurateError, match=r"broken cannot be loaded \(ZeroDivisionError: first\)"
        ):
            embed(tmp_path / "catalog", shards, encoder="broken")
    finally:
        del encoders["broken"]


def test_the_checksum_of_weights_covers_the_files_beside_a_model(tmp_path, shards):
    graph = (node("Flatten", "x", "f"), node("MatMul", "f", "w", "y"))
    inside = save_model(tmp_path / "inside.onnx", *graph, weights=(ONES,))
    external = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    spec = save_model(tmp_path / "model.onnx", *graph, weights=(ONES,), **external)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, shards[:1], encoder=spec, workers=1)
    first = make_encoder(spec).weights_sha256
    weights = tmp_path / "w.bin"
    shutil.copy(weights, tmp_path / "copy")
    weights.write_bytes(np.full((192, 2), 2, np.float32).tobytes())
    assert make_encoder(spec).weights_sha256 != first
    with pytest.raises(CurateError, match="weights_sha256 differs"):
        embed(catalog, shards, encoder=spec, workers=1)
    shutil.copy(tmp_path / "copy", weights)
    embed(catalog, shards, encoder=spec, workers=1)
    weights.unlink()
    with pytest.raises(CurateError, match=r"w\.bin"):
        make_encoder(spec)
    assert len(make_encoder(inside).weights_sha256) == 64


def test_the_command_ends_in_one_line_without_colours(tmp_path, shards):
    options = {key: value for key, value in BROKEN["a huge constant"][0].items() if key != "nodes"}
    spec = save_model(tmp_path / "model.onnx", *BROKEN["a huge constant"][0]["nodes"], **options)
    run = run_curate("embed", shards[0], "--encoder", spec, "-c", tmp_path / "catalog")
    assert run.returncode == 1
    loading, error = run.stderr.splitlines()
    assert loading.startswith("embed: loading the encoder onnx:")
    assert error.startswith("curate: the encoder onnx:")
    assert "\x1b" not in run.stderr
