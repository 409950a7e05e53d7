"""An encoder in an ONNX file, from any framework: `onnx:FILE`, or `onnx:FILE@SIZE` where the graph leaves the size open."""

import hashlib
from pathlib import Path

from curate.encoders import Encoder, encoder
from curate.errors import CurateError
from curate.images import Preprocessing


@encoder
def onnx(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """A network in an ONNX file: one input float [n, 3, size, size], first output [n, dim] (or [n, dim, 1, 1]).

    Images are resized to the shorter edge, cropped at the centre and normalised with ImageNet's mean
    and deviation; a file that wants it otherwise can do its own normalisation in the graph.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    path = Path(checkpoint or variant)
    if not path.is_file():
        raise CurateError(f"no ONNX file at '{path}': check the path (onnx:FILE)")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except (ort.Fail, ort.InvalidProtobuf, ort.InvalidGraph, ort.InvalidArgument, ort.NotImplemented) as error:
        raise CurateError(f"'{path}' is no ONNX model that can be run: {str(error).splitlines()[0]}") from error
    shape = session.get_inputs()[0].shape
    pixels = size or shape[-1]
    if not isinstance(pixels, int):
        raise CurateError(f"'{path}' leaves the image size open: write onnx:{variant}@224")
    preprocessing = Preprocessing(
        size=pixels,
        resize_to=pixels,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    with path.open("rb") as file:
        return Encoder(path, preprocessing, hashlib.file_digest(file, "sha256").hexdigest())
