"""Any model of open_clip: `open_clip:MODEL/PRETRAINED`, as ViT-B-32/laion2b_s34b_b79k.

Captions go through the model's own tokenizer and text tower.
"""

from typing import Any

import numpy as np

from curate.encoders import Encoder, TextTower, encoder, text_tower_of
from curate.encoders.hub import load_from_hub
from curate.encoders.weights import check_loadable, hash_weights
from curate.errors import CurateError, OptionError
from curate.formats.images import Preprocessing

_MAX_CACHED_WORDS = 1 << 18  # some 60 MB


@encoder
def open_clip(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """CLIP's image vectors before normalisation (Radford et al. 2021), with its own transform."""
    size_option = {"force_image_size": size} if size else {}
    tower = _load_model(variant, checkpoint, **size_option).visual.eval()
    return Encoder(tower, _read_preprocessing(tower), hash_weights(tower))


@text_tower_of(open_clip)
def open_clip_text(variant: str, checkpoint: str | None, device: str) -> TextTower:
    """CLIP's text vectors before normalisation; longer texts are cut as the tokenizer does."""
    import torch

    tokenizer = _load_tokenizer(variant)
    clip = _load_model(variant, checkpoint)
    clip.visual = torch.nn.Identity()  # the image tower is not needed, nor is its memory
    weights_sha256 = hash_weights(clip)
    clip = clip.eval().to(device)

    @torch.inference_mode()
    def encode(texts: list[str]) -> np.ndarray:
        tokens = tokenizer(texts).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            vectors = clip.encode_text(tokens, normalize=False)
        return np.asarray(vectors.float().cpu().numpy())

    return TextTower(encode, weights_sha256)


def _load_model(variant: str, checkpoint: str | None, **options: Any) -> Any:
    """Both towers, from the checkpoint or the model hub. Raises CurateError."""
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

    def load() -> Any:
        return library.create_model(
            model, pretrained=checkpoint or tag, weights_only=True, **options
        )

    if checkpoint:
        return check_loadable(checkpoint, load)
    return load_from_hub(f"open_clip:{variant}", load)


def _load_tokenizer(variant: str) -> Any:
    """CLIP's own tokenizer comes with open_clip; those of other models, from the model hub.

    Raises CurateError.
    """
    import open_clip as library

    model = variant.partition("/")[0]
    config: dict[str, Any] = library.get_model_config(model) or {}
    if not config.get("text_cfg", {}).get("hf_tokenizer_name"):
        tokenizer: Any = library.get_tokenizer(model)
        if isinstance(tokenizer, library.SimpleTokenizer):
            tokenizer.cache = _WordCache(tokenizer.cache)
        return tokenizer
    try:
        return load_from_hub(
            f"open_clip:{variant}", lambda: library.get_tokenizer(model), what="tokenizer"
        )
    except ImportError as error:
        raise CurateError(
            f"the tokenizer of '{model}' needs a package that is not installed ({error.name}): "
            "install it, or use a model with CLIP's own tokenizer, such as ViT-B-32"
        ) from error


class _WordCache(dict[str, str]):
    """What CLIP's tokenizer keeps of every word that it has seen; emptied when it is full.

    Only the special tokens, which are in it from the start, must stay.
    """

    def __init__(self, special_tokens: dict[str, str]) -> None:
        super().__init__(special_tokens)
        self._special_tokens = dict(special_tokens)

    def __setitem__(self, word: str, tokens: str) -> None:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
            self.update(self._special_tokens)
        super().__setitem__(word, tokens)


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
        convert="after",
    )
