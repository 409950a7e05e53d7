"""Fit models by the training loop or in closed form, and collect what they predict.

It knows arrays only.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from curate.distances import l2_normalize
from curate.execution.reporting import report_progress
from curate.models import Model
from curate.training import loop, ridge
from curate.training.gradients import GradientProjection, MeanGradient
from curate.training.inputs import TrainingInputs


class FitRequest(NamedTuple):
    """What to fit: a model for each seed, on its own subset of rows, indices int64 [m, k]."""

    model: Model
    inputs: TrainingInputs
    subsets: np.ndarray
    seeds: list[int]
    num_classes: int
    epochs: int
    device: str
    on_all_rows: bool  # every model is trained on all labelled samples
    test: TrainingInputs | None  # held-out samples
    gradient_size: int | None = None  # numbers that projections of last layers' gradients keep


class FittedModels(NamedTuple):
    """What fitted models predict.

    `predict_rows` gives, for rows of the corpus, what is correct, bool [n, m], and more columns;
    `predict_test` the same of the test samples.
    """

    predict_rows: Callable[[slice], tuple[np.ndarray, dict[str, np.ndarray]]]
    predict_test: Callable[[TrainingInputs], dict[str, np.ndarray]]


def fit_models(request: FitRequest) -> FittedModels:
    """Train the models, or solve them where they have a closed form."""
    return _solve(request) if request.model.build is None else _train(request)


def _train(request: FitRequest) -> FittedModels:
    model, seeds = request.model, request.seeds
    data, labels = request.inputs.data_for(model), request.inputs.labels
    stack = loop.Stack(model, data.channels, request.num_classes, seeds, request.device)
    history = None
    if request.on_all_rows:
        history = loop.History(len(seeds), len(labels), request.epochs)
    targets = np.maximum(labels, 0)
    loop.train(stack, model, data, targets, request.subsets, seeds, request.epochs, history)

    def predict(data: loop.TrainingData, rows: slice) -> list[np.ndarray]:
        """Logits [n, m, classes] and features [n, m, d]."""
        row_indices = torch.arange(rows.start, rows.stop)
        outputs = zip(*loop.predict(stack, data, len(seeds), row_indices), strict=True)
        return [
            torch.cat(list(batches), dim=1).transpose(0, 1).cpu().numpy() for batches in outputs
        ]

    def project_gradients(
        logits: np.ndarray, features: np.ndarray, labels: np.ndarray
    ) -> Iterator[np.ndarray]:
        """The projected gradients by each model, float32 [n, k]."""
        shape = (logits.shape[2], features.shape[2], request.gradient_size or 0)
        for index, seed in enumerate(seeds):
            yield GradientProjection(seed, *shape)(logits[:, index], features[:, index], labels)

    held_out: list[MeanGradient] = []
    if request.test is not None and history is not None:
        test_data = request.test.data_for(model)
        held_out = _held_out_gradients(stack, len(seeds), test_data, request.test.labels)

    def predict_rows(rows: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        logits, features = predict(data, rows)
        correct = logits.argmax(2) == labels[rows, None]
        if history is None:
            return correct, {}
        columns = {}
        if held_out:
            columns["contributions"] = np.stack(
                [
                    gradient.align(logits[:, index], features[:, index], labels[rows])
                    for index, gradient in enumerate(held_out)
                ],
                axis=1,
            )
        if request.gradient_size:
            # Of length 1, because half precision has no numbers for the errors of sure models.
            gradients = map(l2_normalize, project_gradients(logits, features, labels[rows]))
            columns["gradient_features"] = np.stack(
                [rows.astype(np.float16) for rows in gradients], axis=1
            )
        return correct, {
            "probabilities": softmax(logits).astype(np.float16),
            "feature_norms": np.linalg.norm(features, axis=2),
            "history": history.correct[:, rows].swapaxes(0, 1),
            "margins": history.margins[:, rows].T / request.epochs,
            **columns,
        }

    def predict_test(inputs: TrainingInputs) -> dict[str, np.ndarray]:
        test_labels = inputs.labels
        logits, features = predict(inputs.data_for(model), slice(0, len(test_labels)))
        columns = {"labels": test_labels, "correct": (logits.argmax(2) == test_labels[:, None]).T}
        if request.gradient_size:
            is_labelled = test_labels >= 0
            gradients = project_gradients(
                logits[is_labelled], features[is_labelled], test_labels[is_labelled]
            )
            columns["target_gradients"] = np.stack([rows.mean(axis=0) for rows in gradients])
        return columns

    return FittedModels(predict_rows, predict_test)


def _held_out_gradients(
    stack: loop.Stack, num_models: int, data: loop.TrainingData, labels: np.ndarray
) -> list[MeanGradient]:
    """The mean gradient over held-out samples by each model of the stack, batch by batch."""
    gradients: list[MeanGradient] = []
    start = 0
    for logits, features in loop.predict(stack, data, num_models, torch.arange(len(labels))):
        if not gradients:
            shape = (logits.shape[2], features.shape[2])
            gradients = [MeanGradient(*shape) for _ in range(num_models)]
        stop = start + logits.shape[1]
        for index, gradient in enumerate(gradients):
            gradient.add(
                logits[index].cpu().numpy(), features[index].cpu().numpy(), labels[start:stop]
            )
        start = stop
    return gradients


def _solve(request: FitRequest) -> FittedModels:
    """Ridge models; one on all samples also keeps what leaving out each sample would change."""
    rows = torch.from_numpy(request.inputs.rows).float()
    labels = request.inputs.labels
    labelled = np.flatnonzero(labels >= 0)
    targets = torch.zeros(len(rows), request.num_classes)
    targets[labelled, labels[labelled]] = 1
    system = ridge.prepare(rows, targets)
    weights = []
    for subset in request.subsets:
        left_out = np.setdiff1d(labelled, subset, assume_unique=True)
        weights.append(ridge.solve(system, torch.from_numpy(left_out)))
        report_progress(len(subset))
    effects: torch.Tensor | None = None
    if request.on_all_rows and request.test is not None:
        effects = torch.cat(ridge.leave_one_out(system, weights[0]), dim=1)

    def predict_rows(row_slice: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        outputs = [(system.rows[row_slice] @ model_weights).numpy() for model_weights in weights]
        row_labels = labels[row_slice]
        correct = np.stack([output.argmax(1) == row_labels for output in outputs], axis=1)
        if not request.on_all_rows:
            return correct, {}
        # Linear in the input, and an estimate of the probabilities.
        shares = np.clip(outputs[0], 1e-6, None)[:, None]
        probabilities = (shares / shares.sum(axis=2, keepdims=True)).astype(np.float16)
        columns = {"probabilities": probabilities}
        if effects is not None:
            columns["leave_one_out"] = effects[row_slice].numpy()
        return correct, columns

    def predict_test(inputs: TrainingInputs) -> dict[str, np.ndarray]:
        test_labels = inputs.labels
        with_bias = ((0, 0), (0, 1))
        test_rows = np.pad(inputs.rows.astype(np.float32), with_bias, constant_values=1)
        outputs = [test_rows @ model_weights.numpy() for model_weights in weights]
        correct = np.stack([output.argmax(1) == test_labels for output in outputs])
        columns = {"labels": test_labels, "correct": correct}
        if request.on_all_rows:
            columns |= {"rows": test_rows, "outputs": outputs[0]}
        return columns

    return FittedModels(predict_rows, predict_test)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
