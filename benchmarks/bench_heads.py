"""Ten heads, as validate and probe train them: against a DataLoader loop over a TensorDataset, in
CPU seconds.

The limit is the matrix products of the ten heads alone, forward and backward, one batch after the
other.
"""

import itertools

import numpy as np
import torch
from harness import Row, time_variants

from curate.models import Model, make_model
from curate.training.loop import Classifier, Stack, VectorData, train

NUM_ROWS, DIM, NUM_CLASSES, NUM_SEEDS, EPOCHS = 20_000, 128, 10, 10, 2


def measure() -> list[Row]:
    torch.set_num_threads(1)
    widths_by_model = {"linear": (DIM, NUM_CLASSES), "mlp": (DIM, 256, NUM_CLASSES)}
    return [measure_model(spec, widths) for spec, widths in widths_by_model.items()]


def measure_model(spec: str, widths: tuple[int, ...]) -> Row:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, NUM_CLASSES, NUM_ROWS)
    noise = generator.standard_normal((NUM_ROWS, DIM))
    class_means = generator.standard_normal((NUM_CLASSES, DIM))
    rows = (noise + class_means[labels]).astype(np.float16)
    model = make_model(spec)
    seconds = time_variants(
        {
            "ours": lambda: train_stack(model, rows, labels),
            "peer": lambda: train_by_data_loader(model, rows, labels),
            "limit": lambda: multiply_matrices(widths, model.batch_size),
        },
        cpu_time=True,
    )
    return Row(f"heads, 10 {spec}", **seconds, peer_name="a DataLoader loop", least_of_peer=10.0)


def train_stack(model: Model, rows: np.ndarray, labels: np.ndarray) -> None:
    seeds = list(range(NUM_SEEDS))
    subsets = np.tile(np.arange(NUM_ROWS), (NUM_SEEDS, 1))
    data = VectorData(rows)
    stack = Stack(model, data.channels, NUM_CLASSES, seeds, "cpu")
    train(stack, model, data, labels, subsets, seeds, EPOCHS)


def train_by_data_loader(model: Model, rows: np.ndarray, labels: np.ndarray) -> None:
    data = torch.utils.data.TensorDataset(torch.from_numpy(rows).float(), torch.from_numpy(labels))
    for seed in range(NUM_SEEDS):
        torch.manual_seed(seed)
        network = Classifier(*model.build(DIM), NUM_CLASSES)
        optimizer = torch.optim.AdamW(
            network.parameters(), model.learning_rate, weight_decay=model.weight_decay
        )
        for _ in range(EPOCHS):
            for inputs, targets in torch.utils.data.DataLoader(
                data, batch_size=model.batch_size, shuffle=True
            ):
                loss = torch.nn.functional.cross_entropy(network(inputs)[0], targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def multiply_matrices(widths: tuple[int, ...], batch_size: int) -> None:
    shapes = list(itertools.pairwise(widths))
    weights = [torch.randn(fan_in, fan_out) for fan_in, fan_out in shapes]
    inputs = [torch.randn(batch_size, fan_in) for fan_in, _ in shapes]
    gradients = [torch.randn(batch_size, fan_out) for _, fan_out in shapes]
    for _ in range(NUM_SEEDS * EPOCHS * (NUM_ROWS // batch_size)):
        for layer in range(len(shapes)):
            inputs[layer] @ weights[layer]  # forward
            inputs[layer].T @ gradients[layer]  # the gradient of the weights
            if layer:  # that of the inputs, which the first layer does not need
                gradients[layer] @ weights[layer].T
