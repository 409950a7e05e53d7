import heapq
import itertools
import os
import queue
import random
import resource
import subprocess
import sys
import time
import types
from concurrent.futures import Future
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from curate.errors import CurateError
from curate.execution import engine, local
from curate.execution.reporting import report_progress
from curate.execution.tasks import tree_reduce
from curate.execution.types import Outcome, Resources


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

    outcomes = list(
        engine.map(square, range(6), Resources(workers), advance=advance, in_order=True)
    )
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


class Surroundings:
    """The task: what a worker finds when it begins."""

    modules = ("torch",)

    def __call__(self, number: int) -> tuple[int, bool, str, str | None, str | None, str | None]:
        time.sleep(0.2)
        variables = map(os.environ.get, ("CURATE_TEST", "OMP_NUM_THREADS", "PYTHONSAFEPATH"))
        return (os.getppid(), "torch" in sys.modules, os.getcwd(), *variables)


def test_workers_share_what_takes_long_to_import_and_have_their_parents_environment(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for value in ("one", "two"):  # the second is set when the process that is forked exists
        folder = tmp_path / value
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("CURATE_TEST", value)
        outcomes = list(engine.map(Surroundings(), range(4), Resources(2)))
        assert [outcome.error for outcome in outcomes] == [None] * 4
        ((parent, *found),) = {outcome.result for outcome in outcomes}
        assert parent != os.getpid()
        assert found == [True, str(folder), value, "1", None]
    # With several threads libraries have to be imported when their number is known.
    outcomes = list(engine.map(Surroundings(), range(4), Resources(2, threads=2)))
    ((parent, *found),) = {outcome.result for outcome in outcomes}
    assert (parent, found[0], found[3]) == (os.getpid(), False, "2")


class Burn:
    """The task: half a second of the processor."""

    modules = ("torch",)

    def __call__(self, number: int) -> None:
        started = time.process_time()
        while time.process_time() - started < 0.5:
            pass


BURN = """
from test_local import Burn
from curate.execution import engine
from curate.execution.types import Resources
assert all(outcome.error is None for outcome in engine.map(Burn(), range(4), Resources(2)))
"""


def test_the_time_of_forked_workers_is_that_of_the_commands_children():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    here = Path(__file__)
    path = os.pathsep.join([str(here.parent), str(here.parents[2])])
    subprocess.run([sys.executable, "-c", BURN], check=True, env=os.environ | {"PYTHONPATH": path})
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before > 4 * 0.5


def test_workers_start_where_no_process_to_fork_from_can(monkeypatch):
    def refuse() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(forkserver, "ensure_running", refuse)
    outcomes = list(engine.map(Surroundings(), range(4), Resources(2)))
    assert {outcome.result[0] for outcome in outcomes} == {os.getpid()}


class LateFirstItem:
    """The task: item 0 ends when all the others have, which each leave a file in a folder."""

    def __init__(self, folder: Path, num_others: int) -> None:
        self.folder, self.num_others = folder, num_others

    def __call__(self, number: int) -> int:
        if number:
            (self.folder / str(number)).touch()
            return number
        deadline = time.monotonic() + 20
        while len(os.listdir(self.folder)) < self.num_others and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(os.listdir(self.folder))


def test_an_item_that_takes_long_holds_no_other_back(tmp_path):
    task = LateFirstItem(tmp_path, num_others=40)
    outcomes = list(engine.map(task, range(41), Resources(2)))
    assert [outcome.item for outcome in outcomes][-1] == 0
    assert outcomes[-1].result == 40
    assert sorted(outcome.item for outcome in outcomes) == list(range(41))


def test_outcomes_in_order_wait_for_an_item_that_takes_long(tmp_path):
    task = LateFirstItem(tmp_path, num_others=40)
    outcomes = list(engine.map(task, range(41), Resources(2), in_order=True))
    assert [outcome.result for outcome in outcomes] == [40, *range(1, 41)]


class SimulatedPool:
    """A pool of workers, and the queue of what they have finished, by a clock of their own.

    Items are the seconds that they take. Work begins in the order of submission.
    """

    def __init__(self, workers: int) -> None:
        self.now, self.free_at = 0.0, [0.0] * workers
        self.running: list[tuple[float, int, Future[Outcome]]] = []
        self.numbers = itertools.count()

    def submit(self, run: object, task: object, seconds: float) -> Future[Outcome]:
        end = max(heapq.heappop(self.free_at), self.now) + seconds
        heapq.heappush(self.free_at, end)
        future: Future[Outcome] = Future()
        heapq.heappush(self.running, (end, next(self.numbers), future))
        return future

    def get(self, timeout: float) -> Future[Outcome]:
        self.now, _, future = heapq.heappop(self.running)
        future.set_result(Outcome(None, None, None))
        return future

    def put(self, future: object) -> None:
        pass

    def shutdown(self, **options: object) -> None:
        pass


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("position", [0, 300, 600])
def test_64_workers_lose_a_tenth_at_most_to_an_item_of_40_times_the_time(
    position, in_order, monkeypatch
):
    seconds = [1.0] * 3_200
    seconds[position] = 40.0
    pool = SimulatedPool(64)
    monkeypatch.setattr(local, "ProcessPoolExecutor", lambda workers, **options: pool)
    monkeypatch.setattr(
        local, "queue", types.SimpleNamespace(SimpleQueue=lambda: pool, Empty=queue.Empty)
    )
    outcomes = list(engine.map(abs, seconds, Resources(64), in_order=in_order))
    assert len(outcomes) == len(seconds)
    assert pool.now <= 1.1 * max(sum(seconds) / 64, 40)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 11])
def test_the_tree_of_sums_is_the_same_in_whatever_order_leaves_come(count):
    def merge(left: str, right: str) -> str:
        return f"({left}{right})"

    leaves = list(enumerate("abcdefghijk"[:count]))
    trees = {tree_reduce(random.Random(seed).sample(leaves, count), merge) for seed in range(20)}
    expected = {0: None, 1: "a", 2: "(ab)", 3: "((ab)c)", 7: "(((ab)(cd))((ef)g))"}
    assert len(trees) == 1
    if count in expected:
        assert trees == {expected[count]}
