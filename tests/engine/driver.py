"""Stages on a Ray cluster, with tasks slowed down so that a test can kill what it wants in the midst of them.

python driver.py ADDRESS SECONDS CALLS      CALLS: JSON, a list of [stage, arguments, options]
"""

import dataclasses
import json
import sys
import time
from typing import Any

from curate.engine import copying, embedding, kmeans, on

seconds = 0.0


def slowly(task: type) -> type:
    """The task with a pause before each item; a class of its own, by whose name workers find it here."""

    @dataclasses.dataclass(frozen=True)
    class Slow(task):  # type: ignore[misc]
        pause: float = dataclasses.field(default_factory=lambda: seconds)

        def __call__(self, item: Any) -> Any:
            time.sleep(self.pause)
            return super().__call__(item)

    Slow.__name__ = Slow.__qualname__ = f"Slow{task.__name__}"
    return Slow


SlowEmbedShards = slowly(embedding.EmbedShards)
SlowWriteShard = slowly(copying.WriteShard)
SlowIterate = slowly(kmeans.Iterate)

if __name__ == "__main__":
    import driver  # by this name, and not as __main__, workers find the classes

    from curate.recipe import stage_function
    from curate.stages import embed, export

    driver.seconds = float(sys.argv[2])
    embed.EmbedShards, export.WriteShard, kmeans.Iterate = driver.SlowEmbedShards, driver.SlowWriteShard, driver.SlowIterate
    with on("ray", sys.argv[1]):
        for stage, arguments, options in json.loads(sys.argv[3]):
            print(stage_function(stage)(*arguments, **options), flush=True)
