"""What stages and engines exchange."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

_ROWS_PER_WORKER = 50_000  # of a product with centroids: starting a worker takes as long

Task = Callable[[Any], Any]
# (work, samples): `work` is in the unit of the progress bar's total.
ReportProgress = Callable[[int, int], None]


class Outcome(NamedTuple):
    """The outcome of one item: `error` is None, or the one-line reason why there is no result."""

    item: Any
    result: Any
    error: str | None


@dataclass(frozen=True)
class Resources:
    """What a map may use: worker processes, threads in each, and GPUs, one per worker."""

    workers: int = 1
    threads: int = 1
    gpus: tuple[int, ...] = ()

    def for_rows(self, num_rows: int) -> "Resources":
        """No more workers than have work for as long as it takes to start them."""
        return replace(self, workers=max(min(self.workers, num_rows // _ROWS_PER_WORKER), 1))


class Devices(NamedTuple):
    """The kind of device to use, cpu or cuda, and the numbers of the GPUs."""

    kind: str
    gpus: tuple[int, ...]


class Cores(NamedTuple):
    """The processor cores that work may use: in all, and on the smallest machine."""

    total: int
    smallest_machine: int


class Engine(Protocol):
    """What the modules `local` and `ray` have in common."""

    def map(
        self, task: Task, items: Iterable[Any], resources: Resources, advance: ReportProgress
    ) -> Iterator[tuple[int, Outcome]]:
        """Outcomes as they finish, each with its item's position among the items."""
        ...

    def reduce(
        self,
        task: Task,
        items: Iterable[Any],
        merge: Callable[[Any, Any], Any],
        resources: Resources,
        advance: ReportProgress,
    ) -> Outcome: ...

    def find_devices(self, device: str) -> Devices:
        """The devices to use for `auto`, `cpu` or `cuda`. Raises CurateError."""
        ...

    def count_cores(self, device: str = "cpu") -> Cores:
        """The cores of all machines or, for `cuda`, of those with a GPU."""
        ...
