"""From photos to their hardest half, with everything between: `curate run` against a script of
webdataset, a DataLoader, timm, faiss and tarfile (end_to_end_peer.py).

Seconds of processors, of all processes of a run. Printed too: seconds on the clock, the most memory
that all of them had at once (as Linux divides what they share), and what is lost when each is
killed after half of its work and started again.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench_embed import write_photo_shards
from harness import Row

NUM_SHARDS, NUM_PHOTOS, K, ROUNDS = 16, 60, 20, 3
INTERVAL = 0.5  # seconds between two looks at the processes
PEER = Path(__file__).with_name("end_to_end_peer.py")
TICKS = os.sysconf("SC_CLK_TCK")
RECIPE = """
catalog = "{folder}/catalog"

[embed]
shards = ["{shards}/*.tar"]
encoder = "efficientnet_lite0"

[cluster]
k = {k}

[score]
metrics = ["ssl_prototypes"]

[select]
keep = 0.5
name = "half"

[export]
selection = "half"
out = "{folder}/out"
"""


class Usage(NamedTuple):
    """Of a process and all that it started: seconds of processors and on the clock, and bytes."""

    processors: float
    clock: float
    memory: int


class Look(NamedTuple):
    """At the processes of a session in one moment."""

    processors: float
    memory: int


def look(session: int) -> Look:
    ticks = memory = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            ticks += sum(map(int, fields[11:15]))  # its own, and those of children that have ended
            lines = (folder / "smaps_rollup").read_text().splitlines()
            memory += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
        except OSError:  # it has ended
            continue
    return Look(ticks / TICKS, memory)


def run(command: list[str], kill_at: float | None = None) -> Usage:
    """Run a command to its end, or until it has used so many seconds of processors."""
    process = subprocess.Popen(  # noqa: S603 - our own programs
        command,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started, memory, used = time.perf_counter(), 0, 0.0
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        now = look(process.pid)
        used, memory = max(used, now.processors), max(memory, now.memory)
        if kill_at is not None and used >= kill_at:
            os.killpg(process.pid, signal.SIGKILL)
            os.wait4(process.pid, 0)
            return Usage(used, time.perf_counter() - started, memory)
        time.sleep(INTERVAL)
    _, status, usage = ended
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return Usage(usage.ru_utime + usage.ru_stime, time.perf_counter() - started, memory)


def describe(name: str, usages: list[Usage]) -> Usage:
    """Print the medians, and return them."""
    processors, clock, memory = (statistics.median(column) for column in zip(*usages, strict=True))
    print(
        f"{name}: {processors:.1f} s of processors, {clock:.1f} s on the clock, "
        f"{memory / 1e9:.2f} GB"
    )
    return Usage(processors, clock, int(memory))


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        urls = write_photo_shards(folder / "shards", NUM_SHARDS, num_photos=NUM_PHOTOS)

        def ours(run_folder: Path) -> list[str]:
            run_folder.mkdir(exist_ok=True)
            recipe = run_folder / "recipe.toml"
            recipe.write_text(RECIPE.format(folder=run_folder, shards=folder / "shards", k=K))
            return [sys.executable, "-W", "ignore", "-m", "curate", "run", str(recipe)]

        def peer(run_folder: Path) -> list[str]:
            run_folder.mkdir(exist_ok=True)
            out = str(run_folder / "out")
            return [sys.executable, "-W", "ignore", str(PEER), out, str(K), *urls]

        commands: dict[str, Callable[[Path], list[str]]] = {"ours": ours, "peer": peer}
        usages: dict[str, list[Usage]] = {variant: [] for variant in commands}
        for number in range(ROUNDS):
            for variant in random.sample(list(commands), len(commands)):
                command = commands[variant](folder / f"{variant}-{number}")
                usages[variant].append(run(command))
        whole = {variant: describe(variant, usages[variant]) for variant in commands}
        again: dict[str, float] = {}
        for variant, command in commands.items():
            arguments = command(folder / f"{variant}-killed")
            killed = run(arguments, kill_at=whole[variant].processors / 2)
            again[variant] = killed.processors + run(arguments).processors
            lost = again[variant] - whole[variant].processors
            print(f"{variant}: killed half-way, {lost / whole[variant].processors:.0%} more work")
    return [
        Row(
            "end to end",
            whole["ours"].processors,
            peer=whole["peer"].processors,
            peer_name="a script",
            least_of_peer=2.0,
        ),
        Row(
            "end to end, killed half-way",
            again["ours"],
            peer=again["peer"],
            peer_name="a script",
            least_of_peer=2.0,
        ),
        Row(
            "end to end, memory",
            whole["ours"].memory / 1e9,
            peer=whole["peer"].memory / 1e9,
            peer_name="a script",
            least_of_peer=1.0,
            unit="GB",
        ),
    ]
