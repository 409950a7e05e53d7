"""Projections of gradients: what autograd gives, projected by signs, and their products."""

import numpy as np
import torch

from curate.training.gradients import GradientProjection, MeanGradient, prediction_errors


def draw_rows(
    num_rows: int, num_classes: int, num_features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, features and labels."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((num_rows, num_classes)).astype(np.float32)
    features = generator.standard_normal((num_rows, num_features)).astype(np.float32)
    return logits, features, generator.integers(num_classes, size=num_rows)


def exact_gradients(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By autograd, for one linear layer: its logits, and the gradients [n, classes, d + 1]."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(features.shape[1], 4)
    logits, gradients = [], []
    for row, label in zip(torch.from_numpy(features), torch.from_numpy(labels), strict=True):
        layer.zero_grad()
        outputs = layer(row)
        torch.nn.functional.cross_entropy(outputs[None], label[None]).backward()
        logits.append(outputs.detach().numpy())
        gradients.append(torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1).numpy())
    return np.stack(logits), np.stack(gradients)


def test_a_projection_is_that_of_the_gradient_of_autograd():
    """Each number is the sum of the gradient's, with signs that are a row's times a column's."""
    _, features, labels = draw_rows(20, 4, 6)
    logits, gradients = exact_gradients(features, labels)
    projection = GradientProjection(3, 4, 6, 16)
    signs = np.einsum("ck,fk->kcf", projection._error_signs, projection._feature_signs)
    assert set(signs.ravel()) == {-1, 1}
    expected = np.einsum("ncf,kcf->nk", gradients, signs) / 4
    np.testing.assert_allclose(projection(logits, features, labels), expected, atol=1e-5)


def test_products_of_projections_are_on_average_those_of_gradients():
    _, features, labels = draw_rows(12, 4, 6)
    logits, gradients = exact_gradients(features, labels)
    flat = gradients.reshape(len(gradients), -1)
    expected = flat @ flat.T
    lengths = np.linalg.norm(flat, axis=1)
    errors = {}
    for size in (100, 10_000):
        projected = GradientProjection(5, 4, 6, size)(logits, features, labels)
        errors[size] = ((projected @ projected.T - expected) / np.outer(lengths, lengths)).std()
    assert errors[100] < 0.2  # the error falls with the root of the size
    assert errors[10_000] < 0.02


def test_the_signs_depend_on_the_seed_alone():
    rows = draw_rows(5, 3, 4)
    first, again, other = (GradientProjection(seed, 3, 4, 8)(*rows) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_confident_prediction_has_an_error_in_the_direction_of_its_rival():
    logits = np.array([[40, 0, -5], [0, 0, 0], [1, 2, 3]], np.float32)
    errors = prediction_errors(logits, np.array([0, 2, -1]))
    np.testing.assert_allclose(errors[0, 1], np.exp(-40), rtol=1e-5)
    np.testing.assert_allclose(errors[0].sum(), 0, atol=1e-24)
    np.testing.assert_allclose(errors[1], [1 / 3, 1 / 3, -2 / 3], rtol=1e-6)
    assert np.isnan(errors[2]).all()


def test_alignment_with_the_held_out_gradient_is_that_of_the_gradients_themselves():
    _, features, labels = draw_rows(40, 4, 6)
    logits, gradients = exact_gradients(features, labels)
    held_out = MeanGradient(4, 6)
    for batch in (slice(20, 28), slice(28, 40)):
        held_out.add(logits[batch], features[batch], labels[batch])
    held_out.add(logits[:2], features[:2], np.array([-1, -1]))  # without a label
    rows = slice(0, 20)
    aligned = held_out.align(logits[rows], features[rows], labels[rows])
    expected = np.einsum("ncd,cd->n", gradients[rows], gradients[20:].mean(axis=0))
    np.testing.assert_allclose(aligned, expected, rtol=1e-4, atol=1e-6)
    assert np.isnan(held_out.align(logits[:1], features[:1], np.array([-1]))).all()
