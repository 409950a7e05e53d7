"""Fit the models of one part, by the training loop or in closed form, and say what they find. Knows arrays only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from curate import engine
from curate.engine import training
from curate.engine.pixels import Cached, Streamed
from curate.models import Model, ridge
from curate.places import Places

if TYPE_CHECKING:
    from curate.engine.training import Data


@dataclass(frozen=True)
class Inputs:
    """A folder that the stage filled: ids.npy and labels.npy int64 [n], rows.npy or pixels-EDGE.npy, places.npz."""

    folder: Path

    def array(self, name: str) -> np.ndarray:
        """One of the arrays, mapped into memory."""
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))

    def places(self) -> Places:
        """Where the samples' images lie."""
        with np.load(self.folder / "places.npz", allow_pickle=False) as found:
            return Places(found["urls"].tolist(), found["owners"], found["offsets"], found["lengths"])

    def data(self, model: Model) -> "Data":
        """What the model reads."""
        if not model.edge:
            return training.Rows(self.array("rows"))
        cache = self.folder / f"pixels-{model.edge}.npy"
        return Cached(cache) if cache.is_file() else Streamed(self.places(), model.edge)


class Work(NamedTuple):
    """What to fit: a model for each seed, on its own subset of the rows, int64 [m, k]."""

    model: Model
    inputs: Inputs
    subsets: np.ndarray
    seeds: list[int]
    classes: int
    epochs: int
    device: str
    whole: bool  # every model is trained on all labelled samples
    tested: bool


class Fitted(NamedTuple):
    """What fitted models say: of rows of the corpus, what is right, bool [n, m], and more columns; of the test samples."""

    columns: Callable[[slice], tuple[np.ndarray, dict[str, np.ndarray]]]
    test: Callable[[Inputs], dict[str, np.ndarray]]


def fit(work: Work) -> Fitted:
    """Train the models, or solve them where they have a closed form."""
    return _solve(work) if work.model.build is None else _train(work)


def _train(work: Work) -> Fitted:
    data, labels = work.inputs.data(work.model), work.inputs.array("labels")
    stack = training.Stack(work.model, data.channels, work.classes, work.seeds, work.device)
    history = training.History(len(work.seeds), len(labels), work.epochs) if work.whole else None
    targets = np.maximum(labels, 0)
    training.train(stack, work.model, data, targets, work.subsets, work.seeds, work.epochs, history)

    def predict(data: "Data", rows: slice) -> list[np.ndarray]:
        """Logits [n, m, classes] and features [n, m, d]."""
        places = torch.arange(rows.start, rows.stop)
        found = zip(*training.predict(stack, data, len(work.seeds), places), strict=True)
        return [torch.cat(list(parts), dim=1).transpose(0, 1).cpu().numpy() for parts in found]

    def columns(rows: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        logits, features = predict(data, rows)
        right = logits.argmax(2) == labels[rows, None]
        if history is None:
            return right, {}
        return right, {
            "probabilities": softmax(logits).astype(np.float16), "feature_norms": np.linalg.norm(features, axis=2),
            "history": history.correct[:, rows].swapaxes(0, 1), "margins": history.margins[:, rows].T / work.epochs,
        }  # fmt: skip

    def test(inputs: Inputs) -> dict[str, np.ndarray]:
        wanted = inputs.array("labels")
        logits, _ = predict(inputs.data(work.model), slice(0, len(wanted)))
        return {"labels": wanted, "correct": (logits.argmax(2) == wanted[:, None]).T}

    return Fitted(columns, test)


def _solve(work: Work) -> Fitted:
    """Ridge models; one on all samples also keeps what leaving out each sample would change."""
    rows, labels = torch.from_numpy(work.inputs.array("rows")).float(), work.inputs.array("labels")
    targets = torch.zeros(len(rows), work.classes)
    labelled = np.flatnonzero(labels >= 0)
    targets[labelled, labels[labelled]] = 1
    system = ridge.prepare(rows, targets)
    weights = []
    for chosen in work.subsets:
        left_out = np.setdiff1d(labelled, chosen, assume_unique=True)
        weights.append(ridge.solve(system, torch.from_numpy(left_out)))
        engine.tick(len(chosen))
    left_out_columns = torch.cat(ridge.leave_one_out(system, weights[0]), dim=1) if work.whole and work.tested else None

    def columns(rows: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        outputs = [(system.rows[rows] @ one).numpy() for one in weights]
        right = np.stack([output.argmax(1) == labels[rows] for output in outputs], axis=1)
        if not work.whole:
            return right, {}
        shares = np.clip(outputs[0], 1e-6, None)[:, None]  # linear in the input, and an estimate of the probabilities
        found = {"probabilities": (shares / shares.sum(axis=2, keepdims=True)).astype(np.float16)}
        if left_out_columns is not None:
            found["leave_one_out"] = left_out_columns[rows].numpy()
        return right, found

    def test(inputs: Inputs) -> dict[str, np.ndarray]:
        wanted = inputs.array("labels")
        rows = np.pad(inputs.array("rows").astype(np.float32), ((0, 0), (0, 1)), constant_values=1)
        outputs = [rows @ one.numpy() for one in weights]
        found = {"labels": wanted, "correct": np.stack([output.argmax(1) == wanted for output in outputs])}
        return found | ({"rows": rows, "outputs": outputs[0]} if work.whole else {})

    return Fitted(columns, test)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
