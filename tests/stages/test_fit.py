import numpy as np
import pytest
from conftest import rows
from PIL import Image

import curate
from curate import sets
from curate.catalog import Catalog
from curate.errors import CurateError

SIZES = (500, 2000, 10_000, 50_000)


def with_trainings(catalog: Catalog, model: str = "mlp") -> Catalog:
    """Four corpora: random samples err by 0.1 + 3/√n, the hardest half by as much as 1.4 times as many random ones."""
    generator = np.random.default_rng(0)
    with catalog.writing() as connection:
        for size in SIZES:
            sets.insert(connection, "validations", {
                "validation": f"v{size}", "embedding": "pixels", "model": model, "epochs": 1, "schedule": "epochs",
                "seeds": 4, "seed": 0, "test": [], "num_test": 100, "num_samples": size, "num_trainings": 12,
                "fingerprint": "", "run_id": 0,
            })  # fmt: skip
            sets.insert(connection, "selections", {
                "selection": f"el2n-hardest-0.5-{size}", "scoring": "el2n", "strategy": "hardest", "keep": 0.5,
                "scope": "global", "balance": 0.5, "balance_by": "label", "balance_base": "proportional", "where_sql": None,
                "seed": 0,
                "num_candidates": size, "num_samples": size // 2, "fingerprint": "", "run_id": 0,
            })  # fmt: skip
            for arm, count, worth in (("full", size, 1.0), ("random", size // 2, 1.0), ("pruned", size // 2, 1.4)):
                for seed in range(4):
                    error = (0.1 + 3 * (worth * count) ** -0.5) * (1 + 0.002 * generator.standard_normal())
                    sets.insert(connection, "trainings", {
                        "validation": f"v{size}", "arm": arm,
                        "selection": None if arm == "full" else f"el2n-hardest-0.5-{size}",
                        "keep": 1.0 if arm == "full" else 0.5, "seed": seed, "num_samples": count, "epochs": 1,
                        "accuracy": 1 - error, "loss": 0.0, "seconds": 0.0,
                    })  # fmt: skip
    return catalog


def test_the_exponents_come_with_intervals_and_pictures(catalog):
    with_trainings(catalog)
    assert curate.fit(catalog) == ["mlp-random", "mlp-pareto"]
    ((exponent, low, high, asymptote, points),) = rows(
        catalog, "select exponent, exponent_low, exponent_high, asymptote, num_points from fits where arms = 'random'"
    )
    assert low <= exponent <= high
    assert exponent == pytest.approx(0.5, abs=0.05)
    assert asymptote == pytest.approx(0.1, abs=0.02)
    assert points == 8
    assert rows(catalog, "select max(abs(fitted / error - 1)) < 0.02 from fit_points where fit = 'mlp-random'") == [(True,)]
    for name in ("scaling-mlp", "crossover-mlp"):
        with Image.open(catalog.path / "figures" / f"{name}.png") as image:
            assert image.width > 800
        assert (catalog.path / "figures" / f"{name}.svg").is_file()
    better = rows(
        catalog,
        "select bool_and(pareto.error < random.error + 1e-3) from fit_points as pareto join fit_points as random "
        "using (num_samples) where pareto.fit = 'mlp-pareto' and random.fit = 'mlp-random'",
    )
    assert better == [(True,)]


def test_a_fit_needs_validations_of_several_sizes(catalog):
    with pytest.raises(CurateError, match=r"no validation by 'mlp' \(epochs\) yet: make some with `curate validate"):
        curate.fit(catalog)
    with_trainings(catalog)
    with catalog.writing() as connection:
        connection.execute("delete from trainings where num_samples > 1000")
    with pytest.raises(CurateError, match="fewer than 4 sizes: compare more, within smaller selections"):
        curate.fit(catalog)
    with pytest.raises(CurateError, match="--form cubic: choose one of power, exponential"):
        curate.fit(catalog, form="cubic")
