"""Embedding photos by open_clip's ViT-B-32 on one core, steady state, against clip-retrieval: same shard, same weights.

clip-retrieval lives in a virtual environment of its own, `.peers/clip-retrieval`, which `make peers` sets up. The weights are
drawn at random: they cost the same.
"""

import os
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from bench_embed import Forward, write
from harness import ROUNDS, Row, timed

from curate import encoders
from curate.corpus import Job
from curate.engine import inference
from curate.engine.embedding import EmbedShards

PHOTOS, BATCH = 240, 16
PYTHON = Path(__file__).parent.parent / ".peers" / "clip-retrieval" / "bin" / "python"
# Between the end of its first batch and the end of its last: loading is over, reading and decoding go on beside.
_PEER = """
import importlib, sys, time
mapper = importlib.import_module("clip_retrieval.clip_inference.mapper")
main = importlib.import_module("clip_retrieval.clip_inference.main").main
ends, plain = [], mapper.ClipMapper.__call__
def call(self, batch):
    found = plain(self, batch)
    ends.append((time.perf_counter(), len(batch["image_tensor"])))
    return found
mapper.ClipMapper.__call__ = call
url, weights, out, size = sys.argv[1:]
main(url, out, input_format="webdataset", enable_text=False, clip_model="open_clip:ViT-B-32/" + weights, batch_size=int(size),
     num_prepro_workers=1, wds_number_file_per_input_file=1000)
print("\\nsteady", (ends[-1][0] - ends[0][0]) / sum(size for _, size in ends[1:]), flush=True)
"""


def measure() -> list[Row]:
    import open_clip

    if not PYTHON.is_file():
        print("clip-retrieval is not measured: `make peers` installs it")
        return []
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (url,) = write(folder, 1)
        weights = folder / "weights.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model("ViT-B-32").state_dict(), weights)
        made = encoders.make("open_clip:ViT-B-32", str(weights))
        model = inference.prepare(made, "open_clip:ViT-B-32", str(weights), "cpu", 1, folder / "encoder.onnx")
        task = EmbedShards(model, folder / "out", "cls", BATCH, 0)
        (folder / "out" / "pending").mkdir(parents=True)
        job = [Job(0, url, Path(url).stat().st_size, None)]
        ways = {"ours": lambda: task(job), "limit": lambda: Forward(model, BATCH)(None)}
        seconds: dict[str, list[float]] = {"ours": [], "limit": [], "peer": []}
        os.sched_setaffinity(0, {min(cores)})
        task(job)
        for round_ in range(ROUNDS):
            for kind in random.sample(list(seconds), len(seconds)):
                if kind in ways:
                    seconds[kind].append(timed({kind: ways[kind]}, rounds=1, warm=False)[kind])
                    continue
                asked = [
                    str(PYTHON),
                    "-W",
                    "ignore",
                    "-c",
                    _PEER,
                    url,
                    str(weights),
                    str(folder / f"peer-{round_}"),
                    str(BATCH),
                ]
                run = subprocess.run(asked, check=True, capture_output=True, text=True)  # noqa: S603
                (an_image,) = (float(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("steady "))
                seconds[kind].append(an_image * PHOTOS)
        os.sched_setaffinity(0, cores)
    median = {kind: statistics.median(found) for kind, found in seconds.items()}
    return [Row("embed, ViT-B-32, one core", **median, peer_name="clip-retrieval", least_of_peer=1.3)]
