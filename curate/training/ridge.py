"""Ridge regression on one-hot labels, solved in closed form.

Many subset models cost little, because the Gram matrix of a subset is that of all rows less that of
the rows left out; and leaving out one row has a formula (Hastie et al., The Elements of Statistical
Learning, 7.10).
"""

from typing import NamedTuple

import torch

# Penalties that are tried, as shares of the mean of the Gram matrix' diagonal.
_STRENGTHS = [10.0**power for power in range(-6, 2)]


class RidgeSystem(NamedTuple):
    """What all solutions share.

    `rows` have a 1 appended [n, d + 1]; `targets` [n, classes] are 0 or 1, all 0 without a label.
    """

    rows: torch.Tensor
    targets: torch.Tensor
    gram: torch.Tensor
    moments: torch.Tensor
    penalty: float


def prepare(rows: torch.Tensor, targets: torch.Tensor) -> RidgeSystem:
    """Gram matrix and moments of labelled rows, and the penalty of least leave-one-out error."""
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    labelled = rows * targets.sum(dim=1, keepdim=True)
    gram, moments = (labelled.T @ rows).double(), (labelled.T @ targets).double()
    values, basis = torch.linalg.eigh(gram)
    rotated = labelled @ basis.float()
    scale = float(values.clamp(min=0).mean())
    errors = []
    for strength in _STRENGTHS:
        shrinkage = 1 / (values.clamp(min=0) + strength * scale + 1e-12)
        fitted = rotated @ (shrinkage[:, None] * (basis.T @ moments)).float()
        leverage = rotated.square() @ shrinkage.float()
        residuals = (targets - fitted) / (1 - leverage).clamp(min=1e-6)[:, None]
        errors.append(float(residuals.square().sum()))
    penalty = _STRENGTHS[errors.index(min(errors))] * scale
    return RidgeSystem(rows, targets, gram, moments, penalty)


def solve(system: RidgeSystem, left_out: torch.Tensor | None = None) -> torch.Tensor:
    """Weights [d + 1, classes] on all labelled rows, or without those at the indices [k]."""
    gram, moments = system.gram.clone(), system.moments.clone()
    if left_out is not None:
        rows, targets = system.rows[left_out], system.targets[left_out]
        gram -= (rows.T @ rows).double()
        moments -= (rows.T @ targets).double()
    gram.diagonal().add_(system.penalty)
    weights: torch.Tensor = torch.linalg.solve(gram, moments).float()
    return weights


def leave_one_out(system: RidgeSystem, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What leaving out each row changes: directions u [n, d + 1] and residuals r [n, classes].

    The prediction at a point x falls by (x·u_i) r_i when row i is left out (Sherman and Morrison's
    formula). Rows without a label were never in the fit: NaN.
    """
    gram = system.gram.clone()
    gram.diagonal().add_(system.penalty)
    directions = (torch.linalg.solve(gram, system.rows.T.double()).T).float()
    leverage = (directions * system.rows).sum(dim=1)
    residuals = system.targets - system.rows @ weights
    residuals[system.targets.sum(dim=1) == 0] = torch.nan
    return directions / (1 - leverage).clamp(min=1e-6)[:, None], residuals
