"""The one training loop. It trains a stack of equal models at once, each with its own seed, order and subset of the rows.

Heads of a stack are one batched tensor program (torch.func); an image model is a stack of its own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from curate import engine, models
from curate.models import Model


class Data(Protocol):
    """Where inputs come from: rows of vectors, or images."""

    channels: int

    def __len__(self) -> int: ...

    def batches(self, orders: list[torch.Tensor], augmented: bool) -> Iterator[torch.Tensor]:
        """For each tensor of places [m, b] the inputs, float32 [m, b, …]."""


class Classifier(nn.Module):
    """A model's body, and a linear layer on its features; gives both logits [n, classes] and features [n, d]."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(features, classes)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(inputs)
        return self.head(features), features


class Stack:
    """Models of one architecture, one for each seed; called with inputs [m, b, …], gives [m, b, classes] and [m, b, d]."""

    def __init__(self, model: Model, channels: int, classes: int, seeds: list[int], device: str) -> None:
        networks = [_network(model, channels, classes, seed) for seed in seeds]
        self.device = torch.device(device)
        self.network = networks[0].to(self.device)
        self.parameters: list[torch.Tensor] = list(self.network.parameters())
        self.stacked: dict[str, torch.Tensor] | None = None
        if model.edge:
            self.network = cast(Any, self.network).to(memory_format=torch.channels_last)
        else:
            moved = [network.to(self.device) for network in networks]
            self.stacked = torch.func.stack_module_state(cast(Any, moved))[0]
            self.parameters = list(self.stacked.values())

    def __call__(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if self.stacked is None:
                logits, features = self.network(inputs[0])
                return logits[None], features[None]
            if _has_products_only(self.network):
                return self._in_products(inputs)
            return cast(tuple[torch.Tensor, torch.Tensor], torch.vmap(self._one)(self.stacked, inputs))

    def renew_heads(self, classes: int, seeds: list[int]) -> None:
        """New last layers, for other classes; the bodies stay as they are (fine-tuning)."""
        features = cast(Any, self.network).head.in_features
        heads = [_seeded(seed, lambda: nn.Linear(features, classes)).to(self.device) for seed in seeds]
        cast(Any, self.network).head = heads[0]
        self.parameters = list(self.network.parameters())
        if self.stacked is not None:
            for name, tensor in torch.func.stack_module_state(cast(Any, heads))[0].items():
                self.stacked[f"head.{name}"] = tensor
            self.parameters = list(self.stacked.values())

    def _one(self, parameters: dict[str, torch.Tensor], inputs: torch.Tensor) -> Any:
        return torch.func.functional_call(self.network, parameters, (inputs,))

    def _in_products(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as by vmap, but for rounding; its detour costs as much as the products of small heads."""
        features = inputs
        for name, layer in cast(Any, self.network).body.named_children():
            features = self._product(f"body.{name}", features) if isinstance(layer, nn.Linear) else layer(features)
        return self._product("head", features), features

    def _product(self, layer: str, inputs: torch.Tensor) -> torch.Tensor:
        # Weights first, as they lie: so their gradient comes as they lie too, without a copy.
        parameters = cast(dict[str, torch.Tensor], self.stacked)
        return torch.baddbmm(parameters[f"{layer}.bias"][..., None], parameters[f"{layer}.weight"], inputs.mT).mT


def _has_products_only(network: nn.Module) -> bool:
    """Whether a classifier's body is a sequence of linear layers and ReLU, as ours are; a user's may be anything."""
    body = cast(Any, network).body
    return isinstance(body, nn.Sequential) and all(
        isinstance(layer, nn.ReLU) or (isinstance(layer, nn.Linear) and layer.bias is not None) for layer in body
    )


def _network(model: Model, channels: int, classes: int, seed: int) -> nn.Module:
    if model.build is None:
        raise TypeError("a model in closed form is not trained")
    build = model.build
    return _seeded(seed, lambda: Classifier(*build(channels), classes))


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """A module whose weights are drawn by a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class History:
    """What happened when rows were presented, before each step: bool [m, n, epochs], and sums of margins float32 [m, n]."""

    def __init__(self, stack: int, rows: int, epochs: int) -> None:
        self.correct = np.zeros((stack, rows, epochs), bool)
        self.margins = np.zeros((stack, rows), np.float32)

    def record(self, epoch: int, places: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """The margin is the logit of the own class less the largest other one; correct is a margin above zero."""
        own = logits.gather(2, targets[..., None])
        others = logits.scatter(2, targets[..., None], -torch.inf).amax(dim=2)
        margins = (own[..., 0] - others).float().cpu().numpy()
        where = (np.arange(len(places))[:, None], places.cpu().numpy())
        self.correct[(*where, epoch)] = margins > 0
        self.margins[where] += margins


def train(
    stack: Stack, model: Model, data: Data, labels: np.ndarray, subsets: np.ndarray, seeds: list[int], epochs: int,
    history: History | None = None,
) -> None:  # fmt: skip
    """Train the models on `subsets` of the rows, places [m, k], for `epochs` passes; labels are int64 [n].

    AdamW (Loshchilov and Hutter 2019) under a one-cycle schedule (Smith and Topin 2018).
    """
    steps = models.steps(model, subsets.shape[1])
    optimizer = torch.optim.AdamW(stack.parameters, model.learning_rate, weight_decay=model.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(epochs * steps))
    targets_of = torch.from_numpy(labels).to(stack.device)
    chosen = torch.from_numpy(subsets)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    stack.network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # augmentation, and layers such as dropout
        for epoch in range(epochs):
            order = torch.stack([
                rows[torch.randperm(len(rows), generator=generator)] for rows, generator in zip(chosen, generators, strict=True)
            ])  # fmt: skip
            batches = list(order.tensor_split(steps, dim=1))
            for places, inputs in zip(batches, data.batches(batches, augmented=True), strict=True):
                targets = targets_of[places.to(stack.device)]
                logits, _ = stack(inputs.to(stack.device, non_blocking=True))
                logits = logits.float()
                # Classes before rows: the softmax then runs over whole vectors of rows, four times as fast for few classes.
                loss = functional.cross_entropy(
                    logits.transpose(1, 2).contiguous(), targets, label_smoothing=model.label_smoothing, reduction="sum"
                )
                optimizer.zero_grad(set_to_none=True)
                (loss / places.shape[1]).backward()  # type: ignore[no-untyped-call]
                if history is not None:
                    history.record(epoch, places, logits.detach(), targets)
                optimizer.step()
                schedule.step()
                engine.tick(places.numel())


def one_cycle(steps: int) -> Callable[[int], float]:
    """The learning rate at each step, as a share of the highest: a quarter of the way up in a line, then down to nothing."""
    rise = max(steps // 4, 1)
    return lambda step: min((step + 1) / rise, max(steps - step, 0) / (steps - rise + 1))


@torch.inference_mode()
def predict(stack: Stack, data: Data, count: int, places: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits [m, b, classes] and features [m, b, d] of the rows at `places`, in evaluation mode, batch by batch."""
    stack.network.eval()
    size = 1024 if stack.stacked is not None else 256
    orders = [part.expand(count, -1) for part in torch.split(places, size)]
    with contextlib.closing(data.batches(orders, augmented=False)) as batches:  # type: ignore[type-var]
        for inputs in batches:
            logits, features = stack(inputs.to(stack.device, non_blocking=True))
            yield logits.float(), features.float()


class Rows:
    """Reduced vectors in half precision, [n, d]."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.from_numpy(values)
        self.channels = int(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def batches(self, orders: list[torch.Tensor], augmented: bool) -> Iterator[torch.Tensor]:
        """See Data; vectors are never augmented."""
        for places in orders:
            # index_select copies whole rows, where indexing by a matrix goes number by number
            yield self.values.index_select(0, places.flatten()).view(*places.shape, -1).float()
