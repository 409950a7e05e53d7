import numpy as np
import pytest
import torch

from curate import encoders, models
from curate.errors import OptionError
from curate.metrics import influence
from curate.training import ridge
from curate.training.image_data import _to_inputs


def noisy_classes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Rows of three classes, the one-hot targets, and the labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, 60)
    rows = generator.standard_normal((60, 5)) + np.eye(5)[labels]
    return torch.from_numpy(rows.astype(np.float32)), torch.eye(3)[torch.from_numpy(labels)], labels


def refit(
    rows: torch.Tensor, targets: torch.Tensor, keep: np.ndarray, penalty: float
) -> np.ndarray:
    """The weights of a new fit on the rows of these indices."""
    x = np.pad(rows.numpy().astype(np.float64)[keep], ((0, 0), (0, 1)), constant_values=1)
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ targets.numpy()[keep])


def test_a_down_dated_solution_is_that_of_a_new_fit():
    rows, targets, _ = noisy_classes()
    system = ridge.prepare(rows, targets)
    left_out = torch.arange(0, 60, 3)
    weights = ridge.solve(system, left_out).numpy()
    keep = np.setdiff1d(np.arange(60), left_out.numpy())
    np.testing.assert_allclose(weights, refit(rows, targets, keep, system.penalty), atol=1e-4)


def test_rows_without_a_label_count_for_nothing():
    rows, targets, _ = noisy_classes()
    system = ridge.prepare(rows[:40], targets[:40])
    more = ridge.prepare(rows, torch.cat([targets[:40], torch.zeros(20, 3)]))
    np.testing.assert_allclose(ridge.solve(system).numpy(), ridge.solve(more).numpy(), atol=1e-4)
    left_out = torch.cat(ridge.leave_one_out(more, ridge.solve(more)), dim=1).numpy()
    effects = influence.influence_of_leave_one_out(
        left_out, np.ones((2, rows.shape[1] + 1)), np.eye(3)[:2], np.array([0, 1])
    )
    assert np.isnan(effects).all(axis=1).tolist() == [False] * 40 + [True] * 20, (
        "rows that were never in the fit have no influence"
    )


def test_influence_in_closed_form_is_that_of_a_new_fit_without_the_sample():
    rows, targets, labels = noisy_classes()
    train, test = slice(0, 40), slice(40, 60)
    system = ridge.prepare(rows[train], targets[train])
    weights = ridge.solve(system)
    left_out = torch.cat(ridge.leave_one_out(system, weights), dim=1).numpy()
    points = np.pad(rows[test].numpy(), ((0, 0), (0, 1)), constant_values=1)
    outputs = points @ weights.numpy()
    effects = influence.influence_of_leave_one_out(left_out, points, outputs, labels[test])
    own_class = labels[test]
    rival_class = np.where(np.eye(3, dtype=bool)[own_class], -np.inf, outputs).argmax(axis=1)
    row_indices = np.arange(20)
    for sample in (0, 17, 39):
        without = points @ refit(rows, targets, np.delete(np.arange(40), sample), system.penalty)
        margins = [
            output[row_indices, own_class] - output[row_indices, rival_class]
            for output in (outputs, without)
        ]
        np.testing.assert_allclose(effects[sample], margins[0] - margins[1], atol=1e-4)


def test_the_penalty_is_that_of_least_leave_one_out_error():
    rows, targets, _ = noisy_classes()
    system = ridge.prepare(rows, targets)
    scale = system.penalty and float(torch.linalg.eigvalsh(system.gram).mean())

    def error(penalty: float) -> float:
        total = 0.0
        for sample in range(60):
            weights = refit(rows, targets, np.delete(np.arange(60), sample), penalty)
            residuals = targets[sample].numpy() - np.append(rows[sample].numpy(), 1) @ weights
            total += float(np.square(residuals).sum())
        return total

    assert error(system.penalty) == pytest.approx(
        min(error(10.0**power * scale) for power in range(-6, 2)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            "lineal",
            "no model called 'lineal'; there are: "
            "conv, finetune, linear, mlp, resnet18, resnet50, ridge, timm",
        ),
        ("linear:3", "the model 'linear' has no variants: write linear"),
        ("mlp:wide", "'mlp:wide': write the widths"),
        ("conv:31", "'conv:31': the edge of the images is one of"),
        ("timm", "needs a variant: write timm:NAME"),
        ("timm:resnet_of_dreams", "timm has no model 'resnet_of_dreams'"),
        ("finetune", "needs a variant: write finetune:NAME"),
        ("finetune:pixels", "no network of torch, so it cannot be trained"),
        ("finetune:encoder_of_dreams", "no encoder called 'encoder_of_dreams'"),
    ],
)
def test_unknown_models_and_variants_are_named(spec, reason):
    with pytest.raises(OptionError, match=reason):
        models.make_model(spec)


@pytest.mark.parametrize(
    ("spec", "image_size"),
    [("conv", 32), ("conv:64", 64), ("resnet18", 224), ("timm:resnet10t@64", 64)],
)
def test_image_models_turn_images_into_features(spec, image_size):
    model = models.make_model(spec)
    assert model.image_size == image_size
    body, num_features = model.build(3)
    images = torch.zeros(2, 3, image_size, image_size)
    assert body.eval()(images).shape == (2, num_features)


def test_every_size_is_trained_by_the_same_rule():
    mlp = models.make_model("mlp")
    for num_rows in (241, 500, 4_096, 50_000, 1_000_000):
        assert models.num_epochs(mlp, num_rows) == 10
    for num_rows in (300, 500, 2_000, 4_096):
        assert models.steps_per_epoch(mlp, num_rows) in (16, 17, 18), "the batch shrinks"
    assert models.steps_per_epoch(mlp, 51_200) == 200
    for num_rows in (20, 100, 240):
        assert models.num_epochs(mlp, num_rows) * models.steps_per_epoch(mlp, num_rows) >= 160
    assert models.num_epochs(models.make_model("ridge"), 20) == 1


def test_fine_tuning_begins_with_what_the_encoder_sees():
    model = models.make_model("finetune:efficientnet_lite0@32")
    assert (model.image_size, model.batch_size) == (32, 64)
    body, num_features = model.build(3)
    assert num_features == 1280
    assert all(parameter.requires_grad for parameter in body.parameters())
    encoder = encoders.make_encoder("efficientnet_lite0@32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    inputs = _to_inputs(torch.from_numpy(pixels), False, torch.device("cpu"))[0]
    with torch.inference_mode():
        expected = encoder.network(torch.from_numpy(encoder.preprocessing.normalize(pixels)))
        torch.testing.assert_close(body.eval()(inputs), expected, rtol=1e-3, atol=1e-4)
    second_body, _ = model.build(3)
    addresses = {parameter.data_ptr() for parameter in body.parameters()}
    assert not addresses & {parameter.data_ptr() for parameter in second_body.parameters()}
