"""An encoder in an ONNX file, from any framework: `onnx:FILE`, or `onnx:FILE@SIZE`.

The size is needed where the graph leaves it open.
"""

import hashlib
from pathlib import Path

from curate.encoders import Encoder, encoder
from curate.errors import CurateError
from curate.formats.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


@encoder
def onnx(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """A network in an ONNX file: input float [n, 3, size, size], output [n, dim] or [n, dim, 1, 1].

    Images are resized to the shorter edge, cropped at the centre and normalised with ImageNet's
    mean and deviation; a file that wants other values can normalise in its graph.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    path = Path(checkpoint or variant)
    if not path.is_file():
        raise CurateError(f"no ONNX file at '{path}': check the path (onnx:FILE)")
    model_errors = (
        ort.Fail,
        ort.InvalidProtobuf,
        ort.InvalidGraph,
        ort.InvalidArgument,
        ort.NotImplemented,
    )
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except model_errors as error:
        reason = str(error).splitlines()[0]
        raise CurateError(f"'{path}' is no ONNX model that can be run: {reason}") from error
    pixels = size or session.get_inputs()[0].shape[-1]
    if not isinstance(pixels, int):
        raise CurateError(f"'{path}' leaves the image size open: write onnx:{variant}@224")
    preprocessing = Preprocessing(
        size=pixels, resize_to=pixels, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    with path.open("rb") as file:
        return Encoder(path, preprocessing, hashlib.file_digest(file, "sha256").hexdigest())
