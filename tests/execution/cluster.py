"""A Ray cluster of several machines, which are process trees of this one.

Each can be killed, and none stays behind.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Ray's workers are nice to others by default, and get nothing of cores on which other tests run.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",
}


class Cluster:
    """A head without processors, where drivers connect, and machines with one processor each."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="curate-test-ray-"))  # sockets need a short path
        self.env = os.environ | ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.env["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]
        )
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        head = self._start(
            "--head",
            f"--port={port}",
            f"--temp-dir={self.folder}",
            "--include-dashboard=false",
            "--num-cpus=0",
        )
        self.machines = [head]
        self.address = f"{self._host()}:{port}"

    def _start(self, *options: str) -> "Machine":
        start = (sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", "start", "--block")
        command = [*start, "--object-store-memory=100000000", *options]
        log = self.folder / f"{len(options)}-{time.monotonic_ns()}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=self.env, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while "runtime started" not in log.read_text():
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.1)
        return Machine(process)

    def _host(self) -> str:
        for file in self.folder.rglob("node_ip_address.json"):
            return file.read_text().split('"')[3]
        return "127.0.0.1"

    def add(self, num_cpus: int = 1, num_gpus: int = 0) -> "Machine":
        """Start another machine; its GPUs are made up."""
        machine = self._start(
            f"--address={self.address}", f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}"
        )
        self.machines.append(machine)
        return machine

    def stop(self) -> None:
        """End all machines."""
        for machine in reversed(self.machines):
            machine.process.terminate()  # it ends its processes
            try:
                machine.process.wait(10)
            except subprocess.TimeoutExpired:
                machine.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[str]:
        """The command lines that still run: Ray's have the folder or the address in them."""
        commands = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.folder) in command or self.address in command:
                    commands.append(command)
        return commands


class Machine:
    """The process tree of `ray start --block`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def kill(self) -> None:
        """Kill all of its processes at once, as when the power fails."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def descendants(parent: int) -> list[int]:
    """The ids of all processes below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    result: list[int] = []
    generation = {parent}
    while generation := {pid for pid, parent_pid in parents.items() if parent_pid in generation}:
        result += generation
    return result
