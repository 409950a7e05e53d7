"""Folders with one holder at a time: locks that end with their process, and temporary folders that the dead do not keep."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
LOCK = ".lock"
_A_DAY = 86_400.0


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, gone at the end; those that killed processes left go first."""
    tidy(folder)
    with contextlib.ExitStack() as held:
        while True:
            path = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
            with contextlib.suppress(BlockingIOError):  # another process took it for a dead one's before we could lock it
                held.enter_context(locked(path))
                break
        try:
            yield path
        finally:
            held.close()
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A workspace on this machine's own disk. Raises PermissionError where another user has its place."""
    top = Path(tempfile.gettempdir()) / f"curate-{os.getuid()}"
    top.mkdir(mode=0o700, exist_ok=True)
    if top.is_symlink() or top.stat().st_uid != os.getuid():
        raise PermissionError(f"'{top}' is another user's: set TMPDIR to a folder of your own")
    with workspace(top) as folder:
        yield folder


def tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder that several use.

    That is workspaces that nobody holds, and temporary files that nobody has written to for a day.
    """
    for old in folder.glob(f"{TEMPORARY}*"):
        if old.is_dir():
            with contextlib.suppress(BlockingIOError), locked(old):
                shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(OSError):  # where NFS kept the lock's file under another name as long as it was open
                old.rmdir()
        else:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - old.stat().st_mtime > _A_DAY:
                    old.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one writer; the kernel lets go of it when the process ends, however it ends.

    Raises BlockingIOError, with the holder's process number as its text, if another process holds it.
    """
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

    path.parent.mkdir(parents=True, exist_ok=True)
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
