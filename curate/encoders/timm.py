"""Any model of timm without its classifier: `timm:MODEL`, as vit_small_patch14_dinov2.lvd142m.

`timm:hf-hub:ORG/NAME` is a model of the hub, `timm:local-dir:FOLDER` a folder in the hub's layout.
"""

import contextlib
import math
from typing import Any

from curate.encoders import Encoder, encoder, weights_files_of
from curate.encoders.hub import HUB, LOCAL_FOLDER, check_hub_folder, load_from_hub
from curate.encoders.weights import check_loadable, hash_weights, load_into, split_checkpoint
from curate.errors import CurateError, OptionError
from curate.formats.images import Preprocessing


@encoder
def timm(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """Pooled features (DINO, DINOv2, SigLIP and others), with timm's own evaluation transform."""
    import timm as library

    is_local = variant.startswith(LOCAL_FOLDER)
    if is_local:
        check_hub_folder(variant.removeprefix(LOCAL_FOLDER), "config.json")
    elif not variant.startswith(HUB) and not library.is_model(variant):
        raise OptionError(
            f"timm has no model '{variant}'; names are listed by timm.list_models('*dino*'); "
            "those of the hub are timm:hf-hub:ORG/NAME, a folder is timm:local-dir:FOLDER"
        )

    def load() -> Any:
        options = {"pretrained": checkpoint is None, "num_classes": 0}
        if size:
            # Convolutional networks take any size, and have no such option.
            with contextlib.suppress(TypeError):
                return library.create_model(variant, img_size=size, **options)
        return library.create_model(variant, **options)

    if checkpoint:
        needs_hub = variant.startswith(HUB)  # for the file that says how the model is built
        model = load_from_hub(f"timm:{variant}", load) if needs_hub else load()
        load_into(model, checkpoint, ignore=("head.", "fc.", "classifier."))
    elif is_local:
        model = check_loadable(variant.removeprefix(LOCAL_FOLDER), load)
    else:
        model = load_from_hub(f"timm:{variant}", load)
    return Encoder(model.eval(), read_preprocessing(model, size), hash_weights(model))


def read_preprocessing(model: Any, size: int | None = None) -> Preprocessing:
    """timm's evaluation transform for a model, as data."""
    import timm.data

    config = timm.data.resolve_model_data_config(model)
    _, height, width = (3, size, size) if size else config["input_size"]
    if height != width:
        raise CurateError(
            f"the model wants images of {height} × {width}; "
            "curate prepares square ones: give NAME@SIZE"
        )
    crop_modes = {"center": "shortest", "border": "longest", "squash": "squash"}
    return Preprocessing(
        size=height,
        resize_to=math.floor(height / config["crop_pct"]),
        resize=crop_modes[config["crop_mode"]],  # type: ignore[arg-type]
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        fill=tuple(round(255 * value) for value in config["mean"]),
    )


@weights_files_of(timm)
def find_timm_weights(variant: str, checkpoint: str | None) -> list[str] | None:
    """The checkpoint, unless the hub or a folder says how the model is built."""
    if checkpoint is None or variant.startswith((HUB, LOCAL_FOLDER)):
        return None
    return [split_checkpoint(checkpoint).file]
