"""Small models that are trained to measure how hard samples are. To add one, write a function here:

    @model
    def wide(variant: str = "1024") -> Model:
        ...

What follows the colon in `wide:2048` is its `variant`. `build` gives the network without its last
layer, which is a linear one for every model, and how many features come out.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from curate.errors import OptionError
from curate.registry import Registry

if TYPE_CHECKING:
    import torch

models = Registry("model", "curate.models")
model = models.register


@dataclass(frozen=True)
class Model:
    """How a model is built and trained.

    `build` takes the number of features in a row (image models: of channels); None means that the
    model is solved in closed form. `image_size` is the edge in pixels of the images it reads, 0 for
    a head on vectors. `on_subsets` holds what differs for models of random subsets: these must fit
    all that they are given, right or wrong, or no memorization can be measured.
    """

    build: "Callable[[int], tuple[torch.nn.Module, int]] | None"
    image_size: int = 0
    batch_size: int = 256
    epochs: int = 10
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    stack_size: int = 50  # models that train as one tensor program; 1 for models of images
    on_subsets: Mapping[str, Any] = field(default_factory=dict)


def make_model(spec: str, fraction: float = 1.0) -> Model:
    """The model of a spec NAME or NAME:VARIANT, to be trained on a fraction of the corpus.

    Raises OptionError.
    """
    name, colon, variant = spec.partition(":")
    function = models[name]
    parameters = inspect.signature(function).parameters
    if colon and not parameters:
        raise OptionError(f"the model '{name}' has no variants: write {name}")
    has_required = any(parameter.default is parameter.empty for parameter in parameters.values())
    if not colon and has_required:
        raise OptionError(f"the model '{name}' needs a variant: write {name}:NAME")
    instance: Model = function(variant) if colon else function()
    return instance if fraction == 1 else replace(instance, **instance.on_subsets)


def model_module(spec: str) -> str:
    """The module that defines the model."""
    return models[spec.partition(":")[0]].__module__


# One rule for every size, so that errors of several sizes differ by the data and not by the
# training, and scores of several corpora by their samples: the model's own number of epochs, each
# of at least 16 steps, for which the batch shrinks in proportion to a small set. Of the rules that
# `python benchmarks/training_rules.py` compares it is the best, or as good, at every size: batches
# of one size train small sets too little, and more epochs for small sets, or as many steps for
# every set, train too long. EL2N's early end of training is the same epoch at every size, too.
_EPOCH_STEPS, _LEAST_BATCH = 16, 16


def num_epochs(model: Model, num_rows: int) -> int:
    """The model's own epochs; more for fewer than 241 rows, whose batches cannot shrink further."""
    if model.build is None:
        return 1
    least_steps = model.epochs * _EPOCH_STEPS
    return max(model.epochs, -(-least_steps // steps_per_epoch(model, num_rows)))


def steps_per_epoch(model: Model, num_rows: int) -> int:
    """At least 16 steps, by smaller batches if need be, but none of less than 16 rows."""
    batch_size = min(model.batch_size, max(num_rows // _EPOCH_STEPS, _LEAST_BATCH))
    return max(-(-num_rows // batch_size), 1)
