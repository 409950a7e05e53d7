"""Verbs on a Ray cluster, with slow tasks, so that a test can kill what it wants meanwhile.

python driver.py ADDRESS SECONDS CALLS      CALLS: JSON, a list of [verb, arguments, options]
"""

import dataclasses
import json
import sys
import time
from typing import Any

from curate.execution.engine import use_engine
from curate.stages.cluster import kmeans, refinement
from curate.stages.embed import stage as embed_stage
from curate.stages.embed import worker as embed_worker
from curate.stages.export import stage as export_stage
from curate.stages.export import worker as export_worker
from curate.verbs import VERBS

pause_seconds = 0.0


def slow(task: type) -> type:
    """The task with a pause before each item, as a class with a name by which workers find it."""

    @dataclasses.dataclass(frozen=True)
    class SlowTask(task):  # type: ignore[misc]
        pause: float = dataclasses.field(default_factory=lambda: pause_seconds)

        def __call__(self, item: Any) -> Any:
            time.sleep(self.pause)
            return super().__call__(item)

    SlowTask.__name__ = SlowTask.__qualname__ = f"Slow{task.__name__}"
    return SlowTask


SlowEmbedShards = slow(embed_worker.EmbedShards)
SlowWriteShard = slow(export_worker.WriteShard)
SlowSumClusters = slow(kmeans.SumClusters)

if __name__ == "__main__":
    import driver  # by this name, and not as __main__, workers find the classes

    driver.pause_seconds = float(sys.argv[2])
    embed_stage.EmbedShards = driver.SlowEmbedShards
    export_stage.WriteShard = driver.SlowWriteShard
    refinement.SumClusters = driver.SlowSumClusters
    with use_engine("ray", sys.argv[1]):
        for verb, arguments, options in json.loads(sys.argv[3]):
            print(VERBS[verb].load()(*arguments, **options), flush=True)
