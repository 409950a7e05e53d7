"""Any model of timm without its classifier: `timm:MODEL`, for example `timm:vit_small_patch14_dinov2.lvd142m`."""

import contextlib
import math
from typing import Any

from curate.encoders import Encoder, encoder, from_hub, hash_weights, load_into
from curate.errors import CurateError
from curate.images import Preprocessing


@encoder
def timm(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """The model's pooled features (DINO, DINOv2, SigLIP and others), with timm's own evaluation transform."""
    import timm as library

    if not library.is_model(variant):
        raise CurateError(f"timm has no model '{variant}'; names are listed by timm.list_models('*dino*')")

    def build() -> Any:
        options = {"pretrained": checkpoint is None, "num_classes": 0}
        if size:
            with contextlib.suppress(TypeError):  # convolutional networks take any size, and no such option
                return library.create_model(variant, img_size=size, **options)
        return library.create_model(variant, **options)

    if checkpoint:
        model = build()
        load_into(model, checkpoint, ignore=("head.", "fc.", "classifier."))
    else:
        model = from_hub(f"timm:{variant}", build)
    return Encoder(model.eval(), preprocessing_of(model, size), hash_weights(model))


def preprocessing_of(model: Any, size: int | None = None) -> Preprocessing:
    """timm's evaluation transform for a model, as data."""
    import timm.data as data

    how = data.resolve_model_data_config(model)
    _, height, width = (3, size, size) if size else how["input_size"]
    if height != width:
        raise CurateError(f"the model wants images of {height} × {width}; curate prepares square ones: give NAME@SIZE")
    modes = {"center": "shortest", "border": "longest", "squash": "squash"}
    return Preprocessing(
        size=height,
        resize_to=math.floor(height / how["crop_pct"]),
        resize=modes[how["crop_mode"]],  # type: ignore[arg-type]
        interpolation=how["interpolation"],
        mean=how["mean"],
        std=how["std"],
        fill=tuple(round(255 * value) for value in how["mean"]),
    )
