"""Any image tower of open_clip: `open_clip:MODEL/PRETRAINED`, as ViT-B-32/laion2b_s34b_b79k."""

from typing import Any

from curate.encoders import Encoder, encoder
from curate.encoders.hub import load_from_hub
from curate.encoders.weights import check_loadable, hash_weights
from curate.errors import OptionError
from curate.formats.images import Preprocessing


@encoder
def open_clip(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """CLIP's image vectors before normalisation (Radford et al. 2021), with its own transform."""
    import open_clip as library

    model, _, tag = variant.partition("/")
    if model not in library.list_models():
        raise OptionError(
            f"open_clip has no model '{model}'; write open_clip:MODEL/PRETRAINED, "
            "for example ViT-B-32/openai"
        )
    tags = library.list_pretrained_tags_by_model(model)
    if not checkpoint and tag not in tags:
        raise OptionError(
            f"'{model}' has no weights '{tag}'; there are: {', '.join(tags)}; "
            "or give a --checkpoint"
        )
    size_option = {"force_image_size": size} if size else {}

    def load() -> Any:
        return library.create_model(
            model, pretrained=checkpoint or tag, weights_only=True, **size_option
        )

    if checkpoint:
        clip = check_loadable(checkpoint, load)
    else:
        clip = load_from_hub(f"open_clip:{variant}", load)
    tower = clip.visual.eval()
    return Encoder(tower, _read_preprocessing(tower), hash_weights(tower))


def _read_preprocessing(tower: Any) -> Preprocessing:
    """open_clip's evaluation transform for a model, as data."""
    config = tower.preprocess_cfg
    pixels = config["size"][0] if isinstance(config["size"], tuple | list) else config["size"]
    return Preprocessing(
        size=pixels,
        resize_to=pixels,
        resize=config["resize_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fill=(config["fill_color"],) * 3,
    )
