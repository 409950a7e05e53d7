"""How long 64 workers take where one item takes 40 times as long as each other.

    python benchmarks/stragglers.py [POSITION …]

Items sleep, and threads stand in for the processes of the local engine, so that no processor is
busy: the rest is the engine itself. The ideal is the sum of all items' time over the workers, or
the time of the longest. About 20 seconds.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from curate.execution import engine, local
from curate.execution.types import Resources

WORKERS, NUM_ITEMS, SECONDS, FACTOR = 64, 2_560, 0.1, 40


def main(positions: list[int]) -> None:
    local.ProcessPoolExecutor = lambda workers, **options: ThreadPoolExecutor(workers)
    print("| the long item is | ideal | makespan | of the ideal |\n|---|---|---|---|")
    for position in positions:
        seconds = [SECONDS] * NUM_ITEMS
        seconds[position] *= FACTOR
        ideal = max(sum(seconds) / WORKERS, *seconds)
        start = time.monotonic()
        num_finished = len(list(engine.map(time.sleep, seconds, Resources(WORKERS))))
        makespan = time.monotonic() - start
        if num_finished != NUM_ITEMS:
            raise SystemExit(f"{NUM_ITEMS - num_finished} items were lost")
        print(
            f"| number {position:,} | {ideal:.2f} s | {makespan:.2f} s | {makespan / ideal:.2f} |"
        )


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [0, 100])
