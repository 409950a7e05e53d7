"""Folder locks that end with their process, and temporary folders that outlive no process."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".lock"
_DAY = 86_400.0  # seconds


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder inside `parent`, removed at the end. What killed processes left goes first."""
    remove_stale(parent)
    with contextlib.ExitStack() as locks:
        while True:
            path = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
            # Another process may take it for a dead one's before it is locked here.
            with contextlib.suppress(BlockingIOError):
                locks.enter_context(lock_folder(path))
                break
        try:
            yield path
        finally:
            locks.close()
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def local_tempdir() -> Iterator[Path]:
    """A temporary folder on this machine's own disk, in that of `user_tempdir`."""
    with temporary_folder(user_tempdir()) as folder:
        yield folder


def user_tempdir() -> Path:
    """This user's folder among the machine's temporary files, which outlives processes.

    Raises PermissionError where another user owns it.
    """
    parent = Path(tempfile.gettempdir()) / f"curate-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.getuid():
        raise PermissionError(
            f"'{parent}' belongs to another user: set TMPDIR to a folder of your own"
        )
    return parent


def remove_stale(folder: Path) -> None:
    """Remove what killed processes left in a folder that several processes use.

    That is temporary folders without a lock, and temporary files unchanged for a day.
    """
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            with contextlib.suppress(BlockingIOError), lock_folder(path):
                shutil.rmtree(path, ignore_errors=True)
            # NFS keeps the lock's file under another name for as long as it is open.
            with contextlib.suppress(OSError):
                path.rmdir()
        else:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _DAY:
                    path.unlink()


def remove_temporary_files(folder: Path) -> None:
    """Remove every temporary file and folder below `folder`. Call it with the folder's lock."""
    for path in [*folder.rglob(f"{TEMPORARY_PREFIX}*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for one writer. The kernel releases the lock when the process ends.

    Raises BlockingIOError, with the holder's process id as its text, if another process holds it.
    """
    path = folder / LOCK_NAME
    file = _open_locked(path)
    # The previous holder may have removed the file between our open and our lock.
    while not _is_same_file(file, path):
        file.close()
        file = _open_locked(path)
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_locked(path: Path) -> Any:
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


def _is_same_file(file: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
