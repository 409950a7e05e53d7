"""Ridge regression on one-hot labels, solved in closed form: the cheap variant of a linear head.

Many subset models cost little, because the Gram matrix of a subset is that of all rows less that of the
rows left out; and leaving out one row has a formula (Hastie et al., The Elements of Statistical Learning, 7.10).
"""

from typing import TYPE_CHECKING, NamedTuple

from curate.models import Model, model

if TYPE_CHECKING:
    import torch

_STRENGTHS = [10.0**power for power in range(-6, 2)]  # of the penalty, as shares of the mean of the Gram matrix' diagonal


@model
def ridge() -> Model:
    """Ridge regression on one-hot labels, in closed form; --count makes sense with --fraction below 1."""
    return Model(build=None, stack=250)


class Ridge(NamedTuple):
    """What all solutions share: rows with a 1 appended [n, d + 1], targets [n, classes] (0 or 1; zeros without a label)."""

    rows: "torch.Tensor"
    targets: "torch.Tensor"
    gram: "torch.Tensor"
    moments: "torch.Tensor"
    penalty: float


def prepare(rows: "torch.Tensor", targets: "torch.Tensor") -> Ridge:
    """Gram matrix and moments of the labelled rows, and the penalty of least squared leave-one-out error."""
    import torch

    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    labelled = rows * targets.sum(dim=1, keepdim=True)
    gram, moments = (labelled.T @ rows).double(), (labelled.T @ targets).double()
    values, basis = torch.linalg.eigh(gram)
    turned = labelled @ basis.float()
    scale = float(values.clamp(min=0).mean())
    errors = []
    for strength in _STRENGTHS:
        shrunk = 1 / (values.clamp(min=0) + strength * scale + 1e-12)
        fitted = turned @ (shrunk[:, None] * (basis.T @ moments)).float()
        leverage = turned.square() @ shrunk.float()
        errors.append(float(((targets - fitted) / (1 - leverage).clamp(min=1e-6)[:, None]).square().sum()))
    return Ridge(rows, targets, gram, moments, _STRENGTHS[errors.index(min(errors))] * scale)


def solve(ridge: Ridge, left_out: "torch.Tensor | None" = None) -> "torch.Tensor":
    """Weights [d + 1, classes] of the solution on all labelled rows, or without those whose places are given [k]."""
    import torch

    gram, moments = ridge.gram.clone(), ridge.moments.clone()
    if left_out is not None:
        out, targets = ridge.rows[left_out], ridge.targets[left_out]
        gram -= (out.T @ out).double()
        moments -= (out.T @ targets).double()
    gram.diagonal().add_(ridge.penalty)
    weights: torch.Tensor = torch.linalg.solve(gram, moments).float()
    return weights


def leave_one_out(ridge: Ridge, weights: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """What leaving out each row changes: directions u [n, d + 1] and residuals r [n, classes].

    The prediction at a point x falls by (x·u_i) r_i when row i is left out (Sherman and Morrison's formula).
    Rows without a label were never there to be left out: NaN.
    """
    import torch

    gram = ridge.gram.clone()
    gram.diagonal().add_(ridge.penalty)
    directions = (torch.linalg.solve(gram, ridge.rows.T.double()).T).float()
    leverage = (directions * ridge.rows).sum(dim=1)
    residuals = ridge.targets - ridge.rows @ weights
    residuals[ridge.targets.sum(dim=1) == 0] = torch.nan
    return directions / (1 - leverage).clamp(min=1e-6)[:, None], residuals
