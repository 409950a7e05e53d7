"""Seconds until each command says something, on a terminal and in a pipe: at most 1 of wall time.

    python benchmarks/first_words.py FOLDER [COMMAND…]

FOLDER is that of `curate demo`, which runs first where it is empty. Each command, or those named,
is interrupted after its first words. Of each it prints the seconds of wall time, those of CPU, and
the words. In a pipe the words may be the answer, on stdout. Exit status 1 if one takes longer.
"""

import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import typer

from curate.cli.app import app

LIMIT, ROUNDS, TIMEOUT = 1.0, 3, 120
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

# What each command is given, beside the catalog.
ARGUMENTS = {
    "pack": ("{folder}/pictures", "{folder}/packed"),
    "embed": ("{folder}/shards/*.tar", "--encoder", "pixels", "-c", "{folder}/other"),
    "import-vectors": ("{folder}/vectors", "{folder}/shards/*.tar"),
    "import": ("{folder}/scores.csv", "--key", "key"),
    "cluster": ("--k", "12"),
    "dedup": (),
    "probe": ("--model", "linear"),
    "score": ("aum",),
    "select": ("--keep", "0.4"),
    "audit": ("el2n-hardest-0.5",),
    "compare": ("el2n-hardest-0.5", "el2n-hardest-0.3"),
    "validate": ("--keep", "0.7", "--strategy", "hardest", "--scoring", "el2n"),
    "export": ("el2n-hardest-0.3", "{folder}/exported"),
    "update": (),
    "fit": (),
    "advise": ("--budget", "2500"),
    "query": ("class_balance",),
    "report": (),
    "gallery": (),
    "view": ("--no-open",),
    "verify": (),
    "remove": ("scoring", "ssl_prototypes"),
    "forget": ("00017",),
    "rename": ("selection", "el2n-hardest-0.3", "few"),
    "plan": ("{folder}/shards/*.tar",),
    "doctor": (),
    "theory": ("--figure", "1a", "--out", "{folder}/figures"),
    "run": ("demo",),
    "list": ("metrics",),
    "demo": ("{folder}",),
}
WITHOUT_CATALOG = ("pack", "embed", "doctor", "theory", "demo")


class Start(NamedTuple):
    """How a command began."""

    wall_seconds: float
    cpu_seconds: float
    words: str


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        demo = sys.argv[1]
        subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "curate", "-q", "demo", demo],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        folder = Path(shutil.copytree(demo, Path(scratch) / "copy"))
        write_inputs(folder)
        print("| command | terminal: wall | CPU | words | pipe: wall | CPU | words |")
        print("|---|---|---|---|---|---|---|")
        slow = [name for name in sys.argv[2:] or list_commands() if not measure(name, folder)]
    if slow:
        sys.exit(f"more than {LIMIT:g} s: {', '.join(slow)}")


def list_commands() -> list[str]:
    """Every command of the application. One that has no arguments above is an error."""
    names: list[str] = typer.main.get_command(app).list_commands(None)  # type: ignore[attr-defined]
    if set(names) != set(ARGUMENTS):
        sys.exit(f"what are the arguments of {', '.join(set(names) ^ set(ARGUMENTS))}?")
    return names


def write_inputs(folder: Path) -> None:
    """What pack, import and import-vectors read."""
    import numpy as np
    from PIL import Image

    (folder / "pictures" / "grey").mkdir(parents=True, exist_ok=True)
    Image.new("L", (28, 28), 128).save(folder / "pictures" / "grey" / "1.png")
    (folder / "scores.csv").write_text("key,beauty\n00017,0.5\n")
    (folder / "vectors").mkdir(exist_ok=True)
    np.save(folder / "vectors" / "0.npy", np.ones((1000, 8), np.float16))


def measure(name: str, folder: Path) -> bool:
    """Print a command's row; whether both medians are within the limit."""
    words = [argument.format(folder=folder) for argument in ARGUMENTS[name]]
    if name not in WITHOUT_CATALOG:
        words += ["-c", str(folder)]
    cells, is_fast = [f"`{name}`"], True
    for on_terminal in (True, False):
        starts = [start_command([name, *words], on_terminal) for _ in range(ROUNDS)]
        wall = statistics.median(start.wall_seconds for start in starts)
        cpu = statistics.median(start.cpu_seconds for start in starts)
        cells += [f"{wall:.2f}", f"{cpu:.2f}", starts[0].words]
        is_fast = is_fast and wall <= LIMIT
    print(f"| {' | '.join(cells)} |", flush=True)
    return is_fast


def start_command(words: list[str], on_terminal: bool) -> Start:
    """Run a command until its first words."""
    reader, writer = os.openpty() if on_terminal else os.pipe()
    begin = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "curate", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if on_terminal else writer,
        stderr=writer,
        start_new_session=True,
    )
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], TIMEOUT)
        wall_seconds, cpu = time.monotonic() - begin, cpu_seconds(process.pid)
        data = os.read(reader, 4096) if ready else b""
    finally:
        os.killpg(process.pid, signal.SIGINT)
        drain(process, reader)
    lines = [line.strip() for line in re.split(r"[\r\n]", _ESCAPES.sub("", data.decode()))]
    first = next(filter(None, lines), "nothing").replace("|", "\\|")
    return Start(wall_seconds, cpu, first[:60])


def drain(process: "subprocess.Popen[bytes]", reader: int) -> None:
    """Read what else it says, so that it can end."""
    try:
        while select.select([reader], [], [], 1)[0] or process.poll() is None:
            if select.select([reader], [], [], 0)[0] and not os.read(reader, 1 << 16):
                break
    except OSError:  # a terminal ends so
        pass
    process.wait(TIMEOUT)
    os.close(reader)


def cpu_seconds(pid: int) -> float:
    """Of a process that runs, or has just ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
