"""Any image tower of open_clip: `open_clip:MODEL/PRETRAINED`, for example `open_clip:ViT-B-32/laion2b_s34b_b79k`."""

from typing import Any

from curate.encoders import Encoder, encoder, fitting, from_hub, hash_weights
from curate.errors import CurateError
from curate.images import Preprocessing


@encoder
def open_clip(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """CLIP's image vectors before normalisation (Radford et al. 2021), with open_clip's own preprocessing."""
    import open_clip as library

    model, _, tag = variant.partition("/")
    if model not in library.list_models():
        raise CurateError(f"open_clip has no model '{model}'; write open_clip:MODEL/PRETRAINED, for example ViT-B-32/openai")
    tags = library.list_pretrained_tags_by_model(model)
    if not checkpoint and tag not in tags:
        raise CurateError(f"'{model}' has no weights '{tag}'; there are: {', '.join(tags)}; or give a --checkpoint")
    size_option = {"force_image_size": size} if size else {}

    def build() -> Any:
        return library.create_model(model, pretrained=checkpoint or tag, weights_only=True, **size_option)

    clip = fitting(checkpoint, build) if checkpoint else from_hub(f"open_clip:{variant}", build)
    tower = clip.visual.eval()
    how = tower.preprocess_cfg
    pixels = how["size"][0] if isinstance(how["size"], tuple | list) else how["size"]
    preprocessing = Preprocessing(
        size=pixels,
        resize_to=pixels,
        resize=how["resize_mode"],
        interpolation=how["interpolation"],
        mean=tuple(how["mean"]),
        std=tuple(how["std"]),
        fill=(how["fill_color"],) * 3,
    )
    return Encoder(tower, preprocessing, hash_weights(tower))
