import numpy as np
import pytest
from conftest import insert_training_run, insert_validation, rows
from PIL import Image

import curate
from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.errors import CurateError, OptionError

SIZES = (500, 2000, 10_000, 50_000)


def add_validations(catalog: Catalog) -> None:
    """Of four corpora: random samples err by 0.1 + 3/√n.

    The hardest half errs by as much as 1.4 times as many random ones.
    """
    generator = np.random.default_rng(0)
    with catalog.writing() as connection:
        for size in SIZES:
            selection = SelectionRecord(
                selection=f"el2n-hardest-0.5-{size}",
                scoring="el2n",
                strategy="hardest",
                keep=0.5,
                scope="global",
                balance=0.5,
                balance_by="label",
                balance_base="proportional",
                where_sql=None,
                seed=0,
                skip_hardest=0.0,
                num_candidates=size,
                num_samples=size // 2,
                fingerprint="",
                run_id=0,
            )
            sets.replace_set(connection, selection)
            insert_validation(
                connection,
                f"v{size}",
                seeds=4,
                num_test=100,
                num_samples=size,
                num_training_runs=12,
            )
            for arm, num_samples, worth in (
                ("full", size, 1.0),
                ("random", size // 2, 1.0),
                ("pruned", size // 2, 1.4),
            ):
                for seed in range(4):
                    noise = 0.002 * generator.standard_normal()
                    error = (0.1 + 3 * (worth * num_samples) ** -0.5) * (1 + noise)
                    insert_training_run(
                        connection,
                        f"v{size}",
                        arm,
                        None if arm == "full" else selection.selection,
                        seed,
                        1 - error,
                        keep=1.0 if arm == "full" else 0.5,
                        num_samples=num_samples,
                    )


def test_the_exponents_come_with_intervals_and_pictures(catalog):
    add_validations(catalog)
    assert curate.fit(catalog) == ["mlp-random", "mlp-pareto"]
    ((exponent, low, high, asymptote, points),) = rows(
        catalog,
        "select exponent, exponent_low, exponent_high, asymptote, num_points "
        "from fits where arms = 'random'",
    )
    assert low <= exponent <= high
    assert exponent == pytest.approx(0.5, abs=0.05)
    assert asymptote == pytest.approx(0.1, abs=0.02)
    assert points == 8
    assert rows(
        catalog,
        "select max(abs(fitted / error - 1)) < 0.02 from fit_points where fit = 'mlp-random'",
    ) == [(True,)]
    for name in ("scaling-mlp", "crossover-mlp"):
        with Image.open(catalog.path / "figures" / f"{name}.png") as image:
            assert image.width > 800
        assert (catalog.path / "figures" / f"{name}.svg").is_file()
    envelope_is_lower = rows(
        catalog,
        "select bool_and(pareto.error < random.error + 1e-3) "
        "from fit_points as pareto join fit_points as random using (num_samples) "
        "where pareto.fit = 'mlp-pareto' and random.fit = 'mlp-random'",
    )
    assert envelope_is_lower == [(True,)]


def test_a_fit_needs_validations_of_several_sizes(catalog):
    with pytest.raises(
        CurateError, match=r"no validation by 'mlp' \(epochs\) yet: make some with `curate validate"
    ):
        curate.fit(catalog)
    add_validations(catalog)
    with catalog.writing() as connection:
        connection.execute("delete from training_runs where num_samples > 1000")
    with pytest.raises(
        CurateError, match="fewer than 4 sizes: compare more, within smaller selections"
    ):
        curate.fit(catalog)
    with pytest.raises(OptionError, match="--form cubic: choose one of power, exponential"):
        curate.fit(catalog, form="cubic")
