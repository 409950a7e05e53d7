import os
import time

import numpy as np
import pytest

from curate.errors import CurateError
from curate.execution import engine
from curate.execution.reporting import report_progress
from curate.execution.types import Resources


def square(number: int) -> int:
    if number == 3:
        raise ValueError("three\nis not liked")
    report_progress(1, 10)
    return number * number


def process_and_gpu(number: int) -> tuple[int, str | None]:
    time.sleep(0.2)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def die(number: int) -> int:
    os._exit(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_come_in_order_and_an_error_stays_with_its_item(workers):
    reports = []

    def advance(amount: int, num_samples: int) -> None:
        reports.append((amount, num_samples))

    outcomes = list(engine.map(square, range(6), Resources(workers), advance=advance))
    assert [outcome.result for outcome in outcomes] == [0, 1, 4, None, 16, 25]
    assert [outcome.item for outcome in outcomes if outcome.error] == [3]
    assert "ValueError: three" in outcomes[3].error
    assert np.sum(reports, axis=0).tolist() == [5, 50]


def test_each_worker_gets_its_gpu():
    outcomes = list(engine.map(process_and_gpu, range(4), Resources(2, 1, (4, 7))))
    processes, gpus = zip(*(outcome.result for outcome in outcomes), strict=True)
    assert set(gpus) == {"4", "7"}
    assert len(set(processes)) == 2
    assert os.getpid() not in processes


def test_a_dead_worker_is_one_clear_line():
    with pytest.raises(CurateError, match="fewer --workers"):
        list(engine.map(die, range(4), Resources(2)))
