"""Files that exist are whole: written under a temporary name, synced, then renamed."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from curate.storage.files import check_regular, filename, is_url, upload
from curate.storage.locks import TEMPORARY_PREFIX, local_tempdir


@contextlib.contextmanager
def atomic_write(location: str | Path) -> Iterator[Path]:
    """Yield a temporary path on this machine; at the block's good end it becomes `location`."""
    if isinstance(location, str) and is_url(location):
        with local_tempdir() as folder:
            local_path = folder / filename(location)
            yield local_path
            upload(local_path, location)
        return
    path = Path(location)
    if path.exists():
        check_regular(path)  # a device or a pipe must not become a file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: Path) -> Path:
    """A path in the same folder that nobody else writes to, not even a lost machine."""
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}-{path.name}")


def fsync(path: Path) -> None:
    """Have the operating system put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
