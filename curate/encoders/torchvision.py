"""torchvision's networks with weights from a file: `torchvision:resnet50` with --checkpoint.

The encoder of Sorscher et al. 2022 is SwAV's ResNet-50; its published checkpoint loads here.
"""

from curate.encoders import Encoder, encoder, weights_files_of
from curate.encoders.weights import hash_weights, load_into, split_checkpoint
from curate.errors import OptionError
from curate.formats.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


@encoder
def torchvision(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """A ResNet's average pool, 2048-d for resnet50, without SwAV's head (Caron et al. 2020)."""
    import torch
    import torchvision.models as models

    if variant not in models.list_models(module=models):
        raise OptionError(f"torchvision has no model '{variant}'; for example torchvision:resnet50")
    if checkpoint is None:
        raise OptionError(
            f"torchvision:{variant} takes its weights from a file: give one with --checkpoint"
        )
    model = models.get_model(variant, weights=None)
    if not isinstance(getattr(model, "fc", None), torch.nn.Linear):
        raise OptionError(
            f"'{variant}' has no classifier called fc; "
            "use a ResNet, or timm:MODEL for other networks"
        )
    model.fc = torch.nn.Identity()
    load_into(model, checkpoint, ignore=("fc.", "projection_head.", "prototypes."))
    pixels = size or 224
    preprocessing = Preprocessing(
        size=pixels,
        resize_to=pixels * 256 // 224,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return Encoder(model.eval(), preprocessing, hash_weights(model))


@weights_files_of(torchvision)
def find_torchvision_weights(variant: str, checkpoint: str | None) -> list[str] | None:
    """The checkpoint: there are no others."""
    return [split_checkpoint(checkpoint).file] if checkpoint else None
