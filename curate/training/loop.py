"""The one training loop. It trains a stack of equal models, each with its own seed and subset.

Heads of a stack are one batched tensor program (torch.func); an image model is a stack of its own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from curate.execution.reporting import report_progress
from curate.models import Model, steps_per_epoch

_HEAD_BATCH, _IMAGE_BATCH = 1024, 256  # rows of a batch in prediction


class TrainingData(Protocol):
    """Where inputs come from: rows of vectors, or images."""

    channels: int

    def __len__(self) -> int: ...

    def batches(
        self, orders: list[torch.Tensor], augmented: bool, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """For each tensor of row indices [m, b] the inputs on the device, float32 [m, b, …]."""
        ...


class Classifier(nn.Module):
    """A model's body and a linear layer: gives logits [n, classes] and features [n, d]."""

    def __init__(self, body: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(inputs)
        return self.head(features), features


class Stack:
    """Models of one architecture, one for each seed.

    Called with inputs [m, b, …], it gives logits [m, b, classes] and features [m, b, d].
    """

    def __init__(
        self, model: Model, channels: int, num_classes: int, seeds: list[int], device: str
    ) -> None:
        networks = [_make_classifier(model, channels, num_classes, seed) for seed in seeds]
        self.device = torch.device(device)
        self.network = networks[0].to(self.device)
        self.parameters: list[torch.Tensor] = list(self.network.parameters())
        self.stacked: dict[str, torch.Tensor] | None = None
        if model.image_size:
            self.network = cast(Any, self.network).to(memory_format=torch.channels_last)
        else:
            on_device = [network.to(self.device) for network in networks]
            self.stacked = torch.func.stack_module_state(cast(Any, on_device))[0]
            self.parameters = list(self.stacked.values())

    def __call__(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        is_cuda = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_cuda):
            if self.stacked is None:
                logits, features = self.network(inputs[0])
                return logits[None], features[None]
            if _has_linear_layers_only(self.network):
                return self._forward_linear_layers(inputs)
            outputs = torch.vmap(self._forward_one)(self.stacked, inputs)
            return cast(tuple[torch.Tensor, torch.Tensor], outputs)

    def replace_heads(self, num_classes: int, seeds: list[int]) -> None:
        """New last layers, for other classes; the bodies stay as they are (fine-tuning)."""
        num_features = cast(Any, self.network).head.in_features
        heads = [
            _seeded(seed, lambda: nn.Linear(num_features, num_classes)).to(self.device)
            for seed in seeds
        ]
        cast(Any, self.network).head = heads[0]
        self.parameters = list(self.network.parameters())
        if self.stacked is not None:
            for name, tensor in torch.func.stack_module_state(cast(Any, heads))[0].items():
                self.stacked[f"head.{name}"] = tensor
            self.parameters = list(self.stacked.values())

    def _forward_one(self, parameters: dict[str, torch.Tensor], inputs: torch.Tensor) -> Any:
        return torch.func.functional_call(self.network, parameters, (inputs,))

    def _forward_linear_layers(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as by vmap up to rounding; vmap costs as much as the products of small heads."""
        features = inputs
        for name, layer in cast(Any, self.network).body.named_children():
            if isinstance(layer, nn.Linear):
                features = self._apply_linear(f"body.{name}", features)
            else:
                features = layer(features)
        return self._apply_linear("head", features), features

    def _apply_linear(self, layer: str, inputs: torch.Tensor) -> torch.Tensor:
        # Weights first, in their own layout: so is their gradient, without a copy.
        parameters = cast(dict[str, torch.Tensor], self.stacked)
        bias, weight = parameters[f"{layer}.bias"], parameters[f"{layer}.weight"]
        return torch.baddbmm(bias[..., None], weight, inputs.mT).mT


def _has_linear_layers_only(network: nn.Module) -> bool:
    """Whether a classifier's body is a sequence of linear layers and ReLU, as our heads are."""
    body = cast(Any, network).body
    return isinstance(body, nn.Sequential) and all(
        isinstance(layer, nn.ReLU) or (isinstance(layer, nn.Linear) and layer.bias is not None)
        for layer in body
    )


def _make_classifier(model: Model, channels: int, num_classes: int, seed: int) -> nn.Module:
    if model.build is None:
        raise TypeError("a model in closed form is not trained")
    build = model.build
    return _seeded(seed, lambda: Classifier(*build(channels), num_classes))


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """A module whose weights are drawn with a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class History:
    """What models predicted for rows when they were presented, before each step.

    correct: bool [m, n, epochs]; margins: sums over epochs, float32 [m, n].
    """

    def __init__(self, num_models: int, num_rows: int, epochs: int) -> None:
        self.correct = np.zeros((num_models, num_rows, epochs), bool)
        self.margins = np.zeros((num_models, num_rows), np.float32)

    def record(
        self, epoch: int, row_indices: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
    ) -> None:
        """The margin is the own class' logit less the largest other; correct is above zero."""
        own_logits = logits.gather(2, targets[..., None])
        rival_logits = logits.scatter(2, targets[..., None], -torch.inf).amax(dim=2)
        margins = (own_logits[..., 0] - rival_logits).float().cpu().numpy()
        index = (np.arange(len(row_indices))[:, None], row_indices.cpu().numpy())
        self.correct[(*index, epoch)] = margins > 0
        self.margins[index] += margins


def train(
    stack: Stack,
    model: Model,
    data: TrainingData,
    labels: np.ndarray,
    subsets: np.ndarray,
    seeds: list[int],
    epochs: int,
    history: History | None = None,
    weights: np.ndarray | None = None,
) -> None:
    """Train the models on `subsets` of the rows, row indices [m, k]; labels are int64 [n].

    `weights` float32 [n], 1 on average over a subset, say how much the loss of each row counts.
    AdamW (Loshchilov and Hutter 2019) under a one-cycle schedule (Smith and Topin 2018).
    """
    steps = steps_per_epoch(model, subsets.shape[1])
    optimizer = torch.optim.AdamW(
        stack.parameters, model.learning_rate, weight_decay=model.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(epochs * steps))
    all_targets = torch.from_numpy(labels).to(stack.device)
    all_weights = None if weights is None else torch.from_numpy(weights).to(stack.device)
    all_rows = torch.from_numpy(subsets)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    stack.network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # augmentation, and layers such as dropout
        for epoch in range(epochs):
            order = torch.stack(
                [
                    rows[torch.randperm(len(rows), generator=generator)]
                    for rows, generator in zip(all_rows, generators, strict=True)
                ]
            )
            batches = list(order.tensor_split(steps, dim=1))
            inputs_of_batches = data.batches(batches, augmented=True, device=stack.device)
            for row_indices, inputs in zip(batches, inputs_of_batches, strict=True):
                targets = all_targets[row_indices.to(stack.device)]
                logits, _ = stack(inputs)
                logits = logits.float()
                # Classes before rows: the softmax then runs over whole vectors of rows, four times
                # as fast for few classes.
                loss = functional.cross_entropy(
                    logits.transpose(1, 2).contiguous(),
                    targets,
                    label_smoothing=model.label_smoothing,
                    reduction="sum" if all_weights is None else "none",
                )
                if all_weights is not None:
                    loss = (loss * all_weights[row_indices.to(stack.device)]).sum()
                optimizer.zero_grad(set_to_none=True)
                (loss / row_indices.shape[1]).backward()  # type: ignore[no-untyped-call]
                if history is not None:
                    history.record(epoch, row_indices, logits.detach(), targets)
                optimizer.step()
                schedule.step()
                report_progress(row_indices.numel())


def one_cycle(steps: int) -> Callable[[int], float]:
    """The learning rate at each step as a share of the highest.

    It rises linearly for a quarter of the steps, then falls linearly to zero.
    """
    rise = max(steps // 4, 1)
    return lambda step: min((step + 1) / rise, max(steps - step, 0) / (steps - rise + 1))


@torch.inference_mode()
def predict(
    stack: Stack, data: TrainingData, num_models: int, row_indices: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits [m, b, classes] and features [m, b, d] in evaluation mode, batch by batch."""
    stack.network.eval()
    batch_size = _IMAGE_BATCH if stack.stacked is None else _HEAD_BATCH
    orders = [chunk.expand(num_models, -1) for chunk in torch.split(row_indices, batch_size)]
    batches = data.batches(orders, augmented=False, device=stack.device)
    with contextlib.closing(batches):  # type: ignore[type-var]
        for inputs in batches:
            logits, features = stack(inputs)
            yield logits.float(), features.float()


class VectorData:
    """Reduced vectors in half precision, [n, d]."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.from_numpy(values)
        self.channels = int(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def batches(
        self, orders: list[torch.Tensor], augmented: bool, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """See TrainingData; vectors are never augmented."""
        for row_indices in orders:
            # index_select copies whole rows, where indexing by a matrix goes number by number
            rows = self.values.index_select(0, row_indices.flatten())
            inputs = rows.view(*row_indices.shape, -1)
            yield inputs.to(device, non_blocking=True).float()
