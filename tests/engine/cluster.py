"""A Ray cluster of several machines that are really process trees of this one; each can be killed, none stays behind."""

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

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}


class Cluster:
    """A head without processors, where drivers connect, and machines that are added, with one processor each."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="curate-test-ray-"))  # sockets need a short path
        self.env = os.environ | ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)])
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self.machines = [self._start("--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false",
                                     "--num-cpus=0")]  # fmt: skip
        self.address = f"{self._host()}:{port}"

    def _start(self, *options: str) -> "Machine":
        words = [sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", "start", "--block",
                 "--object-store-memory=100000000", *options]  # fmt: skip
        log = self.folder / f"{len(options)}-{time.monotonic_ns()}.log"
        with log.open("wb") as out:
            machine = Machine(subprocess.Popen(words, env=self.env, stdout=out, stderr=out, start_new_session=True))
        deadline = time.monotonic() + 60
        while "runtime started" not in log.read_text():
            assert time.monotonic() < deadline and machine.process.poll() is None, log.read_text()
            time.sleep(0.1)
        return machine

    def _host(self) -> str:
        for file in self.folder.rglob("node_ip_address.json"):
            return file.read_text().split('"')[3]
        return "127.0.0.1"

    def add(self) -> "Machine":
        machine = self._start(f"--address={self.address}", "--num-cpus=1")
        self.machines.append(machine)
        return machine

    def stop(self) -> None:
        for machine in reversed(self.machines):
            machine.process.terminate()  # it ends its processes
            try:
                machine.process.wait(10)
            except subprocess.TimeoutExpired:
                machine.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[str]:
        """What still runs of it: every process of Ray has the folder or the address among its words."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found += [words] if str(self.folder) in words or self.address in words else []
        return found


class Machine:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def kill(self) -> None:
        """As when the power goes: every process of it at once."""
        for process in [*family(self.process.pid), self.process.pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def family(parent: int) -> list[int]:
    """All descendants of a process."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, last = [], {parent}
    while last := {child for child, its in parents.items() if its in last}:
        found += last
    return found
