"""What stages and engines exchange."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

Task = Callable[[Any], Any]
ReportProgress = Callable[[int, int], None]  # (amount in the bar's unit, samples)


class Outcome(NamedTuple):
    """The outcome of one item: `error` is None, or the one-line reason why there is no result."""

    item: Any
    result: Any
    error: str | None


@dataclass(frozen=True)
class Resources:
    """What a map may use: worker processes, threads in each, and GPUs assigned one a worker."""

    workers: int = 1
    threads: int = 1
    gpus: tuple[int, ...] = ()


class Engine(Protocol):
    """What the modules `local` and `ray` have in common."""

    def map(
        self, task: Task, items: Iterable[Any], resources: Resources, advance: ReportProgress
    ) -> Iterator[Outcome]: ...

    def reduce(
        self,
        task: Task,
        items: Iterable[Any],
        merge: Callable[[Any, Any], Any],
        resources: Resources,
        advance: ReportProgress,
    ) -> Outcome: ...

    def find_devices(self, device: str) -> tuple[str, tuple[int, ...]]:
        """The device to use (cpu or cuda) and the GPUs, for `auto`, `cpu` or `cuda`."""
        ...

    def count_cores(self, device: str = "cpu") -> tuple[int, int]:
        """The processor cores that work may use: in all, and on the smallest machine."""
        ...
