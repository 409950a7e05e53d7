"""The files that belong to a named set: removed with it, and renamed with it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, EmbeddingRecord, ProbeRecord, SetRecord
from curate.formats.sample_ids import SHARD_FILES, captions_folder
from curate.stages.cluster.stage import centroids_filename, remove_unused_files
from curate.storage import files
from curate.storage.locks import LOCK_NAME, remove_stale

# Catalogs inside a catalog, for shards of --test and --transfer, embedded under the same names.
_INNER_FOLDERS = ("test", "transfer")


def set_folder(catalog: Catalog, kind: str, name: str) -> str | None:
    """The folder with the files of a set; None where a set of its kind has no folder."""
    if kind == EmbeddingRecord.kind:
        return catalog.embedding_folder(name)
    if kind == ProbeRecord.kind:
        return str(catalog.probe_folder(name))
    return None


@contextlib.contextmanager
def lock_set(catalog: Catalog, kind: str, name: str) -> Iterator[None]:
    """Keep out commands that write files of a set. CurateError names the process that does."""
    folder = set_folder(catalog, kind, name)
    if folder is None or not files.is_folder(folder):  # the lock would make it
        yield
        return
    with catalog.write_lock(folder, f"the {kind} '{name}'"):
        yield


def delete_set_files(catalog: Catalog, kind: str, name: str) -> bool:
    """Remove the files of a set that the catalog no longer has; False where there are none.

    So what a kill has left is removed when the same command is given again. Call it with the lock.
    """
    if kind == ClusteringRecord.kind:
        return remove_unused_files(catalog, name)
    folder = set_folder(catalog, kind, name)
    if folder is None:
        return False
    if not files.is_url(folder):
        remove_stale(Path(folder).parent)
    has_files = files.is_folder(folder) and any(
        files.filename(file) != LOCK_NAME for file in files.list_files(folder)
    )
    files.delete_folder(folder)
    return has_files


def link_set_files(catalog: Catalog, record: SetRecord, new_name: str) -> dict[str, str]:
    """Give the files of a set their places under another name; returns the columns that change.

    The old places stay until the catalog has the new name: after a kill the files have both names,
    of which one is in use.
    """
    if isinstance(record, ClusteringRecord):
        file = centroids_filename(new_name, record.run_id)
        location = files.join(catalog.clusterings_folder, file)
        files.link_file(catalog.centroids_file(record), location)
        return {"centroids_file": file}
    if isinstance(record, ProbeRecord):
        folder = f"{new_name}/{files.filename(record.folder)}"
        source_folder = catalog.probe_folder(record.folder)
        for path in sorted(source_folder.rglob("*")):
            if path.is_file():
                copy = catalog.probe_folder(folder) / path.relative_to(source_folder)
                files.link_file(str(path), str(copy))
        return {"folder": folder}
    if isinstance(record, EmbeddingRecord):
        source, target = catalog.embedding_folder(record.name), catalog.embedding_folder(new_name)
        for old, new in ((source, target), (captions_folder(source), captions_folder(target))):
            for file in files.list_files(old, SHARD_FILES):
                files.link_file(file, files.join(new, files.filename(file)))
    return {}


def inner_catalogs(catalog: Catalog) -> list[Catalog]:
    """The catalogs inside this one, which have the test shards of its embeddings."""
    inner = [Catalog(catalog.path / folder) for folder in _INNER_FOLDERS]
    return [one for one in inner if one.database_path.is_file()]
