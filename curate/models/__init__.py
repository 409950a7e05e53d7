"""Small models that are trained to measure how hard samples are. To add one, write a function in a new module here:

    @model
    def wide(variant: str = "1024") -> Model:
        ...

What stands after the colon in `wide:2048` is its `variant`. `build` gives the network without its last layer,
which is a linear one for every model, and how many features come out.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError
from curate.registry import Registry

if TYPE_CHECKING:
    import torch

models = Registry("model", "curate.models")
model = models.register


@dataclass(frozen=True)
class Model:
    """How a model is built and trained.

    `build` takes the number of features in a row (image models: of channels); None means that the model is
    solved in closed form. `edge` is that of the images it reads in pixels, 0 for a head on vectors.
    Batches are smaller, and epochs more, on a corpus too small for `least_steps` steps. `on_subsets` holds what is
    different for models of random subsets: these must fit all that they are given, right or wrong, or there is no
    memorization to be measured.
    """

    build: "Callable[[int], tuple[torch.nn.Module, int]] | None"
    edge: int = 0
    batch: int = 256
    epochs: int = 10
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    least_steps: int = 250
    stack: int = 50  # models of the kind that train as one tensor program; 1 for models of images
    on_subsets: Mapping[str, Any] = field(default_factory=dict)


def make(spec: str, fraction: float = 1.0) -> Model:
    """The model of a specification NAME or NAME:VARIANT, to be trained on a fraction of the corpus. Raises CurateError."""
    name, colon, variant = spec.partition(":")
    function = models[name]
    takes = inspect.signature(function).parameters
    if colon and not takes:
        raise CurateError(f"the model '{name}' has no variants: write {name}")
    if not colon and any(parameter.default is parameter.empty for parameter in takes.values()):
        raise CurateError(f"the model '{name}' needs a variant: write {name}:NAME")
    made: Model = function(variant) if colon else function()
    return made if fraction == 1 else replace(made, **made.on_subsets)


def epochs(model: Model, rows: int) -> int:
    """The model's own epochs, or more on a corpus too small for its least number of steps."""
    return 1 if model.build is None else max(model.epochs, -(-model.least_steps // steps(model, rows)))


def steps(model: Model, rows: int) -> int:
    """Steps an epoch: at least 16 of them on a small corpus, in batches of no less than 16 rows."""
    return max(-(-rows // min(model.batch, max(rows // 16, 16))), 1)
