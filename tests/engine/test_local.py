import os
import time

import numpy as np
import pytest

from curate import engine
from curate.engine import Resources
from curate.errors import CurateError


def square(number: int) -> int:
    if number == 3:
        raise ValueError("three\nis not liked")
    engine.tick(1, 10)
    return number * number


def where(number: int) -> tuple[int, str | None]:
    time.sleep(0.2)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def die(number: int) -> int:
    os._exit(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_come_in_order_and_an_error_stays_with_its_item(workers):
    counted = []
    advance = lambda amount, samples: counted.append((amount, samples))  # noqa: E731
    outcomes = list(engine.map(square, range(6), Resources(workers), advance=advance))
    assert [outcome.result for outcome in outcomes] == [0, 1, 4, None, 16, 25]
    assert [bool(outcome.error) for outcome in outcomes] == [False, False, False, True, False, False]
    assert outcomes[3].item == 3
    assert "ValueError: three" in outcomes[3].error
    assert np.sum(counted, axis=0).tolist() == [5, 50]


def test_each_worker_gets_its_gpu():
    outcomes = list(engine.map(where, range(4), Resources(2, 1, (4, 7))))
    found = {outcome.result for outcome in outcomes}
    assert {gpu for _, gpu in found} == {"4", "7"}
    assert len({process for process, _ in found}) == 2
    assert os.getpid() not in {process for process, _ in found}


def test_a_dead_worker_is_one_clear_line():
    with pytest.raises(CurateError, match="fewer --workers"):
        list(engine.map(die, range(4), Resources(2)))
