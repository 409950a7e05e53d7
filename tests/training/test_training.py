import numpy as np
import torch

from curate import models
from curate.training import loop
from curate.training.loop import History, Stack, VectorData


def noisy_classes(num_rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Rows of three classes that lie apart, and their labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, num_rows)
    rows = generator.standard_normal((num_rows, 8)) + 3 * np.eye(8)[labels]
    return rows.astype(np.float16), labels


def train(
    seeds: list[int], epochs: int = 3, subsets: np.ndarray | None = None
) -> tuple[Stack, VectorData, History]:
    """A stack trained on the rows, or on a subset of them for each model."""
    values, labels = noisy_classes()
    model, data = models.make_model("mlp:16"), VectorData(values)
    stack = Stack(model, data.channels, 3, seeds, "cpu")
    history = History(len(seeds), len(labels), epochs)
    if subsets is None:
        subsets = np.tile(np.arange(len(labels)), (len(seeds), 1))
    loop.train(stack, model, data, labels, subsets, seeds, epochs, history)
    return stack, data, history


def predict_logits(stack: Stack, data: VectorData, num_models: int) -> torch.Tensor:
    batches = loop.predict(stack, data, num_models, torch.arange(len(data)))
    return torch.cat([logits for logits, _ in batches], dim=1)


def test_a_stack_trains_each_model_as_if_it_were_alone():
    both, alone = train([3, 4]), train([4])
    np.testing.assert_allclose(
        predict_logits(*both[:2], 2)[1], predict_logits(*alone[:2], 1)[0], atol=1e-4
    )
    assert (both[2].correct[1] == alone[2].correct[0]).mean() > 0.999


def test_products_of_a_stack_are_what_each_network_gives():
    stack, data, _ = train([3, 4, 5])
    inputs = torch.randn(3, 7, data.channels)
    assert loop._has_linear_layers_only(stack.network)
    by_network = torch.vmap(stack._forward_one)(stack.stacked, inputs)
    for output, expected in zip(stack(inputs), by_network, strict=True):
        torch.testing.assert_close(output, expected)


def test_a_body_of_other_layers_trains_too():
    values, labels = noisy_classes()
    model = models.Model(lambda inputs: (torch.nn.Sequential(torch.nn.LayerNorm(inputs)), inputs))
    data, seeds = VectorData(values), [1, 2]
    stack = Stack(model, data.channels, 3, seeds, "cpu")
    loop.train(stack, model, data, labels, np.tile(np.arange(len(labels)), (2, 1)), seeds, 40)
    assert (predict_logits(stack, data, 2).argmax(dim=2).numpy() == labels).mean() > 0.9


def test_the_same_seed_gives_the_same_models_and_another_seed_others():
    first, again, other = train([1]), train([1]), train([2])
    assert torch.equal(predict_logits(*first[:2], 1), predict_logits(*again[:2], 1))
    assert not torch.equal(predict_logits(*first[:2], 1), predict_logits(*other[:2], 1))


def test_training_learns_and_remembers_when():
    stack, data, history = train([0], epochs=20)
    labels = noisy_classes()[1]
    assert (predict_logits(stack, data, 1)[0].argmax(1).numpy() == labels).mean() > 0.9
    assert history.correct.shape == (1, 200, 20)
    assert history.correct[0, :, 0].mean() < 0.7 < history.correct[0, :, -1].mean()
    assert (history.margins[0] > 0).mean() > 0.8


def test_a_model_sees_only_its_own_subset():
    _, _, history = train([0, 1], subsets=np.stack([np.arange(100), np.arange(100, 200)]))
    assert not history.margins[0, 100:].any()
    assert history.margins[1, 100:].all()


def test_the_margin_is_the_own_logit_less_the_largest_other():
    history = History(1, 2, 1)
    history.record(
        0, torch.tensor([[1, 0]]), torch.tensor([[[3.0, 1, 2], [0, 4, 5]]]), torch.tensor([[0, 1]])
    )
    assert history.margins.tolist() == [[-1, 1]]
    assert history.correct[0, :, 0].tolist() == [False, True]


def test_the_learning_rate_rises_for_a_quarter_and_ends_at_nothing():
    for steps in (1, 2, 3, 4, 7, 400):
        rates = [loop.one_cycle(steps)(step) for step in range(steps)]
        assert max(rates) == rates[max(steps // 4, 1) - 1] == 1
        assert 0 < min(rates) <= rates[-1] <= 1 / max(steps - max(steps // 4, 1), 1)
        assert loop.one_cycle(steps)(steps) == 0


def test_a_row_of_weight_two_counts_as_two_rows():
    """Both in one batch, where weights of 2 and 0 stand for the same rows twice."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((16, 5)).astype(np.float16)
    labels = np.arange(16) % 3
    weights = np.where(np.arange(16) < 8, 2, 0).astype(np.float32)
    outputs = []
    for subset, row_weights in ((np.arange(16), weights), (np.arange(16) % 8, None)):
        model = models.make_model("mlp:4")
        stack = loop.Stack(model, 5, 3, [0], "cpu")
        data = loop.VectorData(rows)
        loop.train(stack, model, data, labels, subset[None], [0], 5, weights=row_weights)
        outputs += [logits for logits, _ in loop.predict(stack, data, 1, torch.arange(16))]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
