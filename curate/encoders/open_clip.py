"""Any model of open_clip: `open_clip:MODEL/PRETRAINED`, as ViT-B-32/laion2b_s34b_b79k.

Captions go through the model's own tokenizer and text tower.
"""

from typing import Any

import numpy as np

from curate.encoders import Encoder, TextTower, encoder, text_tower_of
from curate.encoders.hub import HUB, LOCAL_FOLDER, check_hub_folder, load_from_hub
from curate.encoders.weights import check_loadable, hash_weights, load_state
from curate.errors import CurateError, OptionError
from curate.formats.images import Preprocessing
from curate.storage.locks import local_tempdir

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
    """Both towers, from the checkpoint, the model hub or a folder. Raises CurateError."""
    import open_clip as library

    model = _model_name(variant)
    tag = None
    if model == variant.partition("/")[0]:
        tag = _check_tag(variant, checkpoint)

    def load() -> Any:
        # Without require_pretrained, weights that cannot be had would be random ones.
        return library.create_model(
            model, pretrained=tag, weights_only=True, require_pretrained=True, **options
        )

    if checkpoint:
        clip = library.create_model(
            model, load_weights=False, pretrained_image=False, pretrained_text=False, **options
        )
        _load_checkpoint(clip, checkpoint)
        return clip
    if model.startswith(LOCAL_FOLDER):
        return check_loadable(model.removeprefix(LOCAL_FOLDER), load)
    return load_from_hub(f"open_clip:{variant}", load)


def _model_name(variant: str) -> str:
    """What open_clip calls the model: MODEL of MODEL/PRETRAINED, hf-hub:ORG/NAME or local-dir:DIR.

    Raises CurateError for a folder that is not in the hub's layout.
    """
    if variant.startswith(LOCAL_FOLDER):
        check_hub_folder(variant.removeprefix(LOCAL_FOLDER), "open_clip_config.json")
        return variant
    return variant if variant.startswith(HUB) else variant.partition("/")[0]


def _check_tag(variant: str, checkpoint: str | None) -> str | None:
    """PRETRAINED of MODEL/PRETRAINED, None with a checkpoint. OptionError for wrong names."""
    import open_clip as library

    model, _, tag = variant.partition("/")
    if model not in library.list_models():
        raise OptionError(
            f"open_clip has no model '{model}'; write open_clip:MODEL/PRETRAINED, for example "
            "ViT-B-32/openai, open_clip:hf-hub:ORG/NAME or open_clip:local-dir:FOLDER"
        )
    if checkpoint:
        return None
    tags = library.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise OptionError(
            f"'{model}' has no weights '{tag}'; there are: {', '.join(tags)}; "
            "or give a --checkpoint"
        )
    return tag


def _load_checkpoint(clip: Any, checkpoint: str) -> None:
    """Load a file of weights by open_clip's own function, which converts those of other projects.

    It takes a path, so names that training scripts have changed are put right in a copy.
    """
    import open_clip as library
    import torch

    if checkpoint.endswith((".npz", ".npy")):  # big_vision's
        check_loadable(checkpoint, lambda: library.load_checkpoint(clip, checkpoint))
        return
    state = load_state(checkpoint, clip.state_dict().keys())
    with local_tempdir() as folder:
        path = str(folder / "weights.pt")
        torch.save(state, path)
        check_loadable(checkpoint, lambda: library.load_checkpoint(clip, path, weights_only=True))


def _load_tokenizer(variant: str) -> Any:
    """CLIP's own tokenizer comes with open_clip; those of other models, from the model hub.

    Raises CurateError.
    """
    import open_clip as library

    model = _model_name(variant)
    is_named = not model.startswith((HUB, LOCAL_FOLDER))
    config: dict[str, Any] = (library.get_model_config(model) if is_named else None) or {}
    if is_named and not config.get("text_cfg", {}).get("hf_tokenizer_name"):
        return _bound_cache(library.get_tokenizer(model))
    try:
        if model.startswith(LOCAL_FOLDER):
            return _bound_cache(check_loadable(model, lambda: library.get_tokenizer(model)))
        tokenizer = load_from_hub(
            f"open_clip:{variant}", lambda: library.get_tokenizer(model), what="tokenizer"
        )
        return _bound_cache(tokenizer)
    except ImportError as error:
        raise CurateError(
            f"the tokenizer of '{model}' needs a package that is not installed ({error.name}): "
            "install it, or use a model with CLIP's own tokenizer, such as ViT-B-32"
        ) from error


def _bound_cache(tokenizer: Any) -> Any:
    import open_clip as library

    if isinstance(tokenizer, library.SimpleTokenizer):
        tokenizer.cache = _WordCache(tokenizer.cache)
    return tokenizer


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
