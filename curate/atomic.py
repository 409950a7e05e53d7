"""Files that exist are whole: written beside their place, synced, then renamed."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from curate.storage import check_regular, is_remote, upload
from curate.workspaces import TEMPORARY, scratch


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path on this machine; when the block ends well, the file there becomes `path` in one step."""
    if is_remote(path):
        with scratch() as folder:
            yield folder / path.name
            upload(folder / path.name, path)
        return
    if path.exists():
        check_regular(path)  # a device or a pipe must not become a file
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
