"""`curate verify`: whether a catalog and its exports are what they say; every fault with its remedy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate import fingerprints, probes, resources, shards, storage, vectors
from curate.catalog import Catalog
from curate.engine.copying import fingerprint_of
from curate.errors import CurateError
from curate.progress import bar, log
from curate.shards import DamagedShard
from curate.stages.export import MANIFEST
from curate.stages.packing import Members
from curate.tar import TarReader
from curate.units import printable


class Fault(NamedTuple):
    """Something that is not as it should be, what is wrong with it, and how to mend it."""

    what: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return printable(f"{self.what}: {self.problem}; {self.remedy}")


def verify(catalog: Catalog | str | Path, exports: list[str | Path] | None = None, *, sources: bool = False) -> list[Fault]:
    """All faults of a catalog and of the exports it knows, or of the folders `exports` alone; none for sound ones.

    The catalog: every table can be read and adds up, every file of vectors, centroids and probes is there with the bytes
    that were written, every shard is where it was and as large. An export: its files have the bytes that the manifest says,
    their samples are those of the index. With `sources` the shards are read too, and exports are compared with them.
    """
    catalog = Catalog(catalog)
    if exports:
        folders = [storage.at(folder) for folder in exports]
        faults = [fault for folder in folders for fault in _export(folder, catalog, sources)]
        log.info("verified %s exports: %s faults", len(folders), len(faults) or "no")
        return faults
    damage = _damage(catalog)
    if damage:  # what else the database says counts for nothing
        return [damage]
    with catalog.reading() as connection:
        known = [storage.at(path) for (path,) in connection.execute("select path from exports").fetchall()]
    here = [folder for folder in known if folder.is_dir()]
    for folder in set(known) - set(here):
        log.info("the export %s is no longer there: not verified", folder)
    faults = [*_tables(catalog), *_files(catalog), *_shards(catalog, sources)]
    faults += [fault for folder in here for fault in _export(folder, catalog, sources)]
    log.info("verified the catalog and %s exports: %s faults", len(here), len(faults) or "no")
    return faults


def _damage(catalog: Catalog) -> Fault | None:
    """Read every block of the database, which has checksums of its own."""
    import duckdb

    try:
        with catalog.reading() as connection:
            for (table,) in connection.execute("select table_name from duckdb_tables()").fetchall():
                connection.execute(f"select sum(hash(rows)::double) from {table} as rows").fetchall()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        return Fault(str(catalog.database), f"it is damaged ({reason})", "restore it from a copy, or embed into a new catalog")
    return None


def _tables(catalog: Catalog) -> Iterator[Fault]:
    """The numbers that must agree."""
    with catalog.reading() as connection:
        yield from (Fault(*row) for row in connection.execute(resources.sql("stages/verify")).fetchall())


def _files(catalog: Catalog) -> Iterator[Fault]:
    """Vectors, centroids and what probes wrote."""
    with catalog.reading() as connection:
        files = connection.execute(
            "select embedding, shard_id, num_embedded, vectors, dim from embedded_shards join embeddings using (embedding) "
            "where num_embedded > 0 order by all"
        ).fetchall()
        centroids = connection.execute("select clustering, centroids, k, centroids_fingerprint from clusterings").fetchall()
        models = connection.execute(
            "select distinct folder, probe, part from probes join probe_models using (probe)"
        ).fetchall()
    with bar("verify", len(files)) as advance:
        for embedding, shard_id, count, fingerprint, dim in files:
            yield from _vectors(catalog, embedding, shard_id, (count, dim), fingerprint)
            advance(1, count)
    for clustering, name, k, fingerprint in centroids:
        path = catalog.centroid_file({"centroids": name})
        remedy = f"cluster again: `curate cluster --name {clustering}` with another --seed and back, or another --name"
        yield from _file(path, fingerprint, f"remove it; {remedy}")
        if not fingerprint and path.is_file() and len(np.load(path, allow_pickle=False)) != k:
            yield Fault(str(path), f"not the {k} centroids that it should hold", remedy)
    for folder, probe, part in models:
        yield from _part(catalog.path / "probes" / folder / part, probe)


def _vectors(
    catalog: Catalog, embedding: str, shard_id: int, shape: tuple[int, int], fingerprint: str | None
) -> Iterator[Fault]:
    path = catalog.vector_file(embedding, shard_id)
    remedy = "remove the file, and the same `curate embed` again makes it"
    faults = list(_file(path, fingerprint, remedy))
    yield from faults
    if faults:
        return
    with catalog.reading() as connection:
        wanted = connection.execute(
            "select sample_id from samples where shard_id = $1 and sample_id not in (select sample_id from failures "
            "where embedding = $2 and shard_id = $1 and sample_id is not null) order by sample_id", [shard_id, embedding],
        ).fetchnumpy()["sample_id"]  # fmt: skip
    try:
        found = vectors.read(path)
    except CurateError as error:
        yield Fault(str(path), str(error), remedy)
        return
    if found.vectors.shape != shape or not np.array_equal(found.sample_ids, wanted):
        yield Fault(str(path), "its rows are not those of the shard's samples", remedy)
    elif not np.isfinite(found.vectors).all():
        yield Fault(str(path), "it holds numbers that are not finite", remedy)


def _part(folder: Path, probe: str) -> Iterator[Fault]:
    remedy = f"remove '{folder}', and the same `curate probe --name {probe}` again makes it"
    try:
        summary = probes.summary(folder)
        names = summary.get("fingerprints") or dict.fromkeys(f"{shard_id:08d}.parquet" for shard_id in summary["shards"])
    except (CurateError, KeyError, AttributeError) as error:
        yield Fault(str(folder), f"its summary cannot be read ({type(error).__name__})", remedy)
        return
    for name, fingerprint in names.items():
        yield from _file(folder / Path(name).name, fingerprint, remedy)


def _file(path: Path, fingerprint: str | None, remedy: str) -> Iterator[Fault]:
    try:
        if fingerprint and fingerprints.of_file(path) != fingerprint:
            yield Fault(str(path), "its bytes are not those that were written", remedy)
        elif not path.is_file():
            yield Fault(str(path), "it is gone", remedy)
    except OSError as error:
        yield Fault(str(path), "it is gone" if isinstance(error, FileNotFoundError) else str(error.strerror), remedy)


def _shards(catalog: Catalog, sources: bool) -> Iterator[Fault]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select url, num_bytes, fingerprint from shards where num_samples is not null order by shard_id"
        ).fetchall()
    with bar("shards", sum(num_bytes for _, num_bytes, _ in rows) >> 10) as advance:
        for url, num_bytes, fingerprint in rows:
            yield from _source(url, num_bytes, fingerprint if sources else None)
            advance(num_bytes >> 10, 0)


def _source(url: str, num_bytes: int, fingerprint: str | None) -> Iterator[Fault]:
    """One shard: there, as large as it was and, where a fingerprint is given, the same bytes."""
    try:
        if shards.stat(url).num_bytes != num_bytes or (fingerprint and shards.fingerprint(url, fingerprint) != fingerprint):
            yield Fault(url, "it has changed since it was embedded", "restore it, or embed the new corpus elsewhere (-c NEW)")
    except OSError as error:
        yield Fault(url, f"it cannot be read ({error.strerror or error})", "put it back, or embed it where it is now")


def _export(out: Path, catalog: Catalog, sources: bool) -> Iterator[Fault]:
    """An exported folder against its manifest and its index and, with `sources`, against the shards it was made from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not out.is_dir():
        yield Fault(str(out), "there is no such folder", "check the path of the export")
        return
    again = f"export again into an empty folder, or remove {MANIFEST} and the file and export again"
    try:
        with storage.opened(out / MANIFEST) as file:
            manifest = _checked(json.load(file))
        written, claimed, made_from = manifest["shards"], manifest["num_samples"], manifest["sources"]
        with storage.opened(out / "index.parquet") as file:
            index = pq.read_table(file).to_pydict()
        ids, places = index["sample_id"], zip(index.get("shard", []), index.get("exported_key", []), strict=True)
    except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException) as error:
        yield Fault(str(out), f"its manifest or index cannot be read ({type(error).__name__}: {error})", again)
        return
    if len(ids) != claimed or (claimed != sum(shard["num_samples"] for shard in written) and written):
        yield Fault(str(out / "index.parquet"), f"{len(ids)} samples, but the manifest says {claimed}", again)
    keys: dict[str, list[str]] = {}
    for shard, key in places:
        keys.setdefault(shard, []).append(key)
    for shard in written:
        yield from _exported(out, shard, keys.get(shard["path"], []), again)
    if sources:
        for source in made_from:
            yield from _source(source["url"], source["num_bytes"], source["fingerprint"])
        yield from _against_sources(out, manifest, catalog, again)


def _checked(manifest: Any) -> dict[str, Any]:
    """The manifest, if it has what a manifest has. Raises ValueError."""
    kinds = {"shards": list, "sources": list, "num_samples": int, "selection": dict, "layout": str}
    inner = {"shards": {"path": str, "num_samples": int, "fingerprint": str},
             "sources": {"url": str, "num_bytes": int, "fingerprint": str}}  # fmt: skip

    def has(found: Any, kinds: dict[str, type]) -> bool:
        return isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())

    if not has(manifest, kinds) or not all(has(row, wanted) for name, wanted in inner.items() for row in manifest[name]):
        raise ValueError("it is no manifest of an export")
    return dict(manifest)


def _exported(out: Path, shard: dict[str, Any], keys: list[str], again: str) -> Iterator[Fault]:
    path = out / shard["path"]
    if not path.resolve().is_relative_to(out.resolve()):  # a manifest from strangers names no file elsewhere
        yield Fault(str(out / MANIFEST), f"it names '{shard['path']}', outside of the export", again)
        return
    faults = list(_file(path, shard["fingerprint"], again))
    yield from faults
    if not path.is_file():
        return
    try:
        with shards.open_shard(str(path), buffered=False) as stream:
            found = [shards.readable(sample.key) for sample in shards.samples(TarReader(stream))]
    except DamagedShard as damage:
        yield Fault(str(path), str(damage), again)
        return
    if found != keys:
        missing = len(set(keys) - set(found))
        problem = (
            f"{missing} of {len(keys)} samples of the index are missing"
            if missing
            else "its samples are not those of the index"
        )
        yield Fault(str(path), problem, again)


def _against_sources(out: Path, manifest: dict[str, Any], catalog: Catalog, again: str) -> Iterator[Fault]:
    """Every byte of the samples beside those in the shards, where the catalog still has the selection."""
    name, layout = str(manifest["selection"].get("selection")), manifest["layout"]
    head = catalog.head("selection", name) if catalog.database.is_file() else None
    if layout == "index":  # it holds no bytes
        return
    if head is None or head["fingerprint"] != manifest["selection"].get("fingerprint"):
        log.info("%s: the catalog no longer has its selection: not compared with the shards byte by byte", out)
        return
    try:
        members = Members(catalog, head)
        wanted = {packed.output.path: fingerprint_of(packed.output) for packed in members.packed(layout) if packed.output}
    except CurateError as error:
        yield Fault(str(out), f"it cannot be compared with its shards: {error}", "mend the shards first")
        return
    found = {shard["path"]: shard["fingerprint"] for shard in manifest["shards"]}
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            yield Fault(str(out / path), "its samples are not byte for byte those of the shards", again)
