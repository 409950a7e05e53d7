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
    a head on vectors. Batches are smaller, and epochs more, on a corpus too small for `least_steps`
    steps. `on_subsets` holds what differs for models of random subsets: these must fit all that
    they are given, right or wrong, or no memorization can be measured.
    """

    build: "Callable[[int], tuple[torch.nn.Module, int]] | None"
    image_size: int = 0
    batch_size: int = 256
    epochs: int = 10
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    least_steps: int = 250
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


def num_epochs(model: Model, num_rows: int) -> int:
    """The model's own epochs, or more on a corpus too small for its least number of steps."""
    if model.build is None:
        return 1
    return max(model.epochs, -(-model.least_steps // steps_per_epoch(model, num_rows)))


def steps_per_epoch(model: Model, num_rows: int) -> int:
    """At least 16 steps on a small corpus, in batches of no less than 16 rows."""
    return max(-(-num_rows // min(model.batch_size, max(num_rows // 16, 16))), 1)
