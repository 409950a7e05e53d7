"""An encoder in an ONNX file, from any framework: `onnx:FILE`, or `onnx:FILE@SIZE`.

The size is needed where the graph leaves it open.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.encoders import Encoder, encoder
from curate.errors import CurateError
from curate.formats.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

_FATAL = 4  # ONNX Runtime's severity: its errors are raised too, and its warnings are not ours


@encoder
def onnx(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """A network in an ONNX file: input float [n, 3, size, size], output [n, dim] or [n, dim, 1, 1].

    Images are resized to the shorter edge, cropped at the centre and normalised with ImageNet's
    mean and deviation; a file that wants other values can normalise in its graph.
    """
    path = Path(checkpoint or variant)
    if not path.is_file():
        raise CurateError(f"no ONNX file at '{path}': check the path (onnx:FILE)")
    try:
        session = make_session(str(path), threads=1, providers=["CPUExecutionProvider"])
    except Exception as error:  # the boundary to other people's models
        raise CurateError(f"'{path}' is no ONNX model that can be run: {explain(error)}") from error
    pixels = _check_input(path, session.get_inputs(), size)
    if not pixels:
        raise CurateError(f"'{path}' leaves the image size open: write onnx:{variant}@224")
    preprocessing = Preprocessing(
        size=pixels, resize_to=pixels, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    return Encoder(path, preprocessing, _hash_model(path))


def make_session(network: str | bytes, *, threads: int, providers: list[str]) -> Any:
    """A session of ONNX Runtime for a file or its content, which writes nothing to stderr.

    What it raises are exceptions of many types, without a base.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    return onnxruntime.InferenceSession(network, options, providers=providers)


def explain(error: Exception) -> str:
    """The first line of an error of ONNX Runtime, without its codes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0])


def _check_input(path: Path, inputs: list[Any], size: int | None) -> int | None:
    """The size of the images that a model takes, or None where it is open. Raises CurateError."""
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        raise CurateError(f"'{path}' has {len(inputs)} inputs ({names}): one is needed, the images")
    (images,) = inputs
    shape, expected = list(images.shape), "float [n, 3, size, size]"
    if len(shape) == 4 and isinstance(shape[0], int):
        raise CurateError(
            f"'{path}' takes batches of {shape[0]} only: export it with an open batch size "
            "(dynamic_axes in torch.onnx.export)"
        )
    is_image = len(shape) == 4 and (shape[1] == 3 or not isinstance(shape[1], int))
    if images.type != "tensor(float)" or not is_image:
        raise CurateError(
            f"'{path}' takes {images.type} {shape}: export it so that it takes {expected}"
        )
    fixed = {edge for edge in shape[2:] if isinstance(edge, int)}
    if len(fixed) > 1 or (size and fixed - {size}):
        given = f", and @{size} was given" if size else ""
        raise CurateError(f"'{path}' takes images of {shape[2]} × {shape[3]}{given}")
    return size or next(iter(fixed), None)


def _hash_model(path: Path) -> str:
    """SHA-256 of the file and, where weights lie in files beside it, of these. Raises CurateError.

    Without such files it is the file's own.
    """
    digest = hashlib.sha256()
    locations = [path.parent / name for name in sorted(set(_list_external_files(path)))]
    for location in [path, *locations]:
        if location != path:
            digest.update(f"\n{location.name}\n".encode())
        try:
            with location.open("rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
        except OSError as error:
            raise CurateError(
                f"'{path}' has weights in '{location.name}', which cannot be read "
                f"({error.strerror}): put it beside the model"
            ) from error
    return digest.hexdigest()


def _list_external_files(path: Path) -> Iterator[str]:
    """The files with the weights of a model that are not in the model's own file."""
    import onnx as library

    model = library.load(path, load_external_data=False)
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs:
        graph = graphs.pop()
        tensors = list(graph.initializer)
        tensors += [part for one in graph.sparse_initializer for part in (one.values, one.indices)]
        for node in [*graph.node, *nodes]:
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors]
                graphs += [attribute.g, *attribute.graphs] if attribute.g.node else attribute.graphs
        nodes = []
        for tensor in tensors:
            if tensor.data_location == library.TensorProto.EXTERNAL:
                yield from (
                    entry.value for entry in tensor.external_data if entry.key == "location"
                )
