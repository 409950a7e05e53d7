"""Ten heads, as validate and probe train them: against a DataLoader loop over a TensorDataset, in CPU seconds.

The limit is the matrix products of the ten heads alone, forward and backward, one batch after the other.
"""

import itertools

import numpy as np
import torch
from harness import Row, timed

from curate import models
from curate.engine import training

ROWS, DIM, CLASSES, SEEDS, EPOCHS = 20_000, 128, 10, 10, 2


def measure() -> list[Row]:
    torch.set_num_threads(1)
    return [row(spec, widths) for spec, widths in (("linear", (DIM, CLASSES)), ("mlp", (DIM, 256, CLASSES)))]


def row(spec: str, widths: tuple[int, ...]) -> Row:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, ROWS)
    values = (generator.standard_normal((ROWS, DIM)) + generator.standard_normal((CLASSES, DIM))[labels]).astype(np.float16)
    model, seeds = models.make(spec), list(range(SEEDS))
    subsets = np.tile(np.arange(ROWS), (SEEDS, 1))

    def ours() -> None:
        data = training.Rows(values)
        stack = training.Stack(model, data.channels, CLASSES, seeds, "cpu")
        training.train(stack, model, data, labels, subsets, seeds, EPOCHS)

    def peer() -> None:
        data = torch.utils.data.TensorDataset(torch.from_numpy(values).float(), torch.from_numpy(labels))
        for seed in seeds:
            torch.manual_seed(seed)
            network = training.Classifier(*model.build(DIM), CLASSES)
            optimizer = torch.optim.AdamW(network.parameters(), model.learning_rate, weight_decay=model.weight_decay)
            for _ in range(EPOCHS):
                for inputs, targets in torch.utils.data.DataLoader(data, batch_size=model.batch, shuffle=True):
                    loss = torch.nn.functional.cross_entropy(network(inputs)[0], targets)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

    def products() -> None:
        shapes, batch = list(itertools.pairwise(widths)), model.batch
        weights = [torch.randn(fan_in, fan_out) for fan_in, fan_out in shapes]
        inputs = [torch.randn(batch, fan_in) for fan_in, _ in shapes]
        outputs = [torch.randn(batch, fan_out) for _, fan_out in shapes]
        for _ in range(SEEDS * EPOCHS * (ROWS // batch)):
            for place in range(len(shapes)):
                inputs[place] @ weights[place]  # forward
                inputs[place].T @ outputs[place]  # the weights' gradient
                if place:
                    outputs[place] @ weights[place].T  # the inputs' gradient, which the first layer does not need

    found = timed({"ours": ours, "peer": peer, "limit": products}, cpu=True)
    return Row(f"heads, 10 {spec}", **found, peer_name="a DataLoader loop", least_of_peer=10.0)
