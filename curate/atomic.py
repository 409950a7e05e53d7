"""Files that exist are whole: written beside their place, synced, then renamed. And folders with one writer at a time."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.storage import is_remote, upload

TEMPORARY = ".tmp-"
LOCK = ".lock"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path on this machine; when the block ends well, the file there becomes `path` in one step."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="curate-") as folder:
            yield Path(folder) / path.name
            upload(Path(folder) / path.name, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def beside(path: Path) -> Path:
    """A temporary path next to it, which nobody else writes to: not even a lost machine that lives on."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")


def sync(path: Path) -> None:
    """Have the operating system put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left in `folder`; call it holding the folder's lock."""
    if is_remote(folder):
        return
    for path in [*folder.rglob(f"{TEMPORARY}*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, gone at the end; those that killed processes left go first."""
    sweep_workspaces(folder)
    path = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
    try:
        with locked(path):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep_workspaces(folder: Path) -> None:
    """Remove the workspaces in `folder` that killed processes left; a living process holds its own."""
    for old in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(BlockingIOError), locked(old):
            shutil.rmtree(old)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one writer; the kernel lets go of it when the process ends, however it ends.

    Raises BlockingIOError, with the holder's process number as its text, if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    file = _lock(path)
    while not _is_at(file, path):  # the holder before us removed the file that we had opened
        file.close()
        file = _lock(path)
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> Any:
    import fcntl

    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise BlockingIOError(holder) from None
    return file


def _is_at(file: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
