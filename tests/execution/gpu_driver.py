"""Verbs on a Ray cluster, for an encoder that runs on a made-up GPU.

python gpu_driver.py ADDRESS CALLS      CALLS: JSON, a list of [verb, arguments, options]
"""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from curate.encoders import Encoder, encoder
from curate.encoders.pixels import flatten
from curate.execution.engine import use_engine
from curate.formats.images import Preprocessing
from curate.stages.embed import device, feeding
from curate.stages.embed import stage as embed_stage
from curate.stages.embed.inference import EncoderPlan
from curate.verbs import VERBS

PREPROCESSING = Preprocessing(8, 8, "squash")


def tiny(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """An encoder like `pixels` that claims to have a network."""
    return Encoder(flatten, PREPROCESSING, "no weights")


def load_made_up_gpu(plan: EncoderPlan) -> device.HostDevice:
    """Computes what the encoder does on a processor. Only for a worker to which Ray gave a GPU."""
    import ray

    assert ray.get_gpu_ids() == [0], "a worker without a GPU loaded the encoder"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert plan.device == "cuda"
    return device.HostDevice(lambda images: flatten(PREPROCESSING.normalize(images)))


def use_made_up_gpu() -> None:
    device.load_device = feeding.load_device = load_made_up_gpu  # type: ignore[assignment]


@dataclass(frozen=True)
class FeedMadeUpGpu(feeding.FeedDevice):
    def __call__(self, shards: Iterable[Any]) -> Any:
        use_made_up_gpu()
        return super().__call__(shards)


def measure_dim(plan: EncoderPlan) -> int:
    use_made_up_gpu()
    return device.measure_dim(plan)


if __name__ == "__main__":
    import gpu_driver  # by this name, and not as __main__, workers find what is defined here

    encoder(gpu_driver.tiny)
    embed_stage.FeedDevice = gpu_driver.FeedMadeUpGpu
    embed_stage.measure_dim = gpu_driver.measure_dim
    with use_engine("ray", sys.argv[1]):
        for verb, arguments, options in json.loads(sys.argv[2]):
            print(VERBS[verb].load()(*arguments, **options), flush=True)
