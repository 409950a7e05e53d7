"""Embedding photos by open_clip's ViT-B-32 on one core, steady state, against clip-retrieval: same
shard, same weights.

clip-retrieval lives in a virtual environment of its own, `.peers/clip-retrieval`, which `make
peers` sets up. The weights are drawn at random: they cost the same.
"""

import os
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from bench_embed import (
    NUM_PHOTOS,
    ForwardOnly,
    make_embed_task,
    make_shard_tasks,
    write_photo_shards,
)
from harness import ROUNDS, Row, time_variants

from curate.encoders import make_encoder
from curate.stages.embed.inference import plan_encoder

BATCH_SIZE = 16
ENCODER = "open_clip:ViT-B-32"
PEER_PYTHON = Path(__file__).parent.parent / ".peers" / "clip-retrieval" / "bin" / "python"
# Prints the seconds per image between the end of its first batch and the end of its last: loading
# is over by then, and reading and decoding go on in parallel.
_PEER_PROGRAM = """
import importlib, sys, time
mapper = importlib.import_module("clip_retrieval.clip_inference.mapper")
main = importlib.import_module("clip_retrieval.clip_inference.main").main
batches, original_call = [], mapper.ClipMapper.__call__
def call(self, batch):
    result = original_call(self, batch)
    batches.append((time.perf_counter(), len(batch["image_tensor"])))
    return result
mapper.ClipMapper.__call__ = call
url, weights, out, batch_size = sys.argv[1:]
main(
    url,
    out,
    input_format="webdataset",
    enable_text=False,
    clip_model="open_clip:ViT-B-32/" + weights,
    batch_size=int(batch_size),
    num_prepro_workers=1,
    wds_number_file_per_input_file=1000,
)
seconds = batches[-1][0] - batches[0][0]
print("\\nsteady", seconds / sum(count for _, count in batches[1:]), flush=True)
"""


def measure_peer(url: str, weights: Path, out: Path) -> float:
    """The seconds that clip-retrieval takes for the photos, without its start."""
    arguments = [url, str(weights), str(out), str(BATCH_SIZE)]
    command = [str(PEER_PYTHON), "-W", "ignore", "-c", _PEER_PROGRAM, *arguments]
    process = subprocess.run(  # noqa: S603 - our own program
        command, check=True, capture_output=True, text=True
    )
    (line,) = (line for line in process.stdout.splitlines() if line.startswith("steady "))
    return float(line.split()[1]) * NUM_PHOTOS


def measure() -> list[Row]:
    import open_clip

    if not PEER_PYTHON.is_file():
        print("clip-retrieval is not measured: `make peers` installs it")
        return []
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (url,) = write_photo_shards(folder, 1)
        weights = folder / "weights.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model("ViT-B-32").state_dict(), weights)
        encoder = make_encoder(ENCODER, str(weights))
        onnx = str(folder / "encoder.onnx")
        plan = plan_encoder(encoder, ENCODER, str(weights), "cpu", 1, onnx)
        task = make_embed_task(plan, folder / "out", BATCH_SIZE)
        shard_tasks = make_shard_tasks([url])
        forward_only = ForwardOnly(plan, BATCH_SIZE)
        variants = {"ours": lambda: task(shard_tasks), "limit": forward_only}
        seconds: dict[str, list[float]] = {"ours": [], "limit": [], "peer": []}
        os.sched_setaffinity(0, {min(cores)})
        task(shard_tasks)
        for number in range(ROUNDS):
            for kind in random.sample(list(seconds), len(seconds)):
                if kind == "peer":
                    seconds[kind].append(measure_peer(url, weights, folder / f"peer-{number}"))
                else:
                    run = {kind: variants[kind]}
                    seconds[kind].append(time_variants(run, rounds=1, warm_up=False)[kind])
        os.sched_setaffinity(0, cores)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return [
        Row("embed, ViT-B-32, one core", **medians, peer_name="clip-retrieval", least_of_peer=1.3)
    ]
