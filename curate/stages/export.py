"""`curate export`: the samples of a selection as tar shards, byte for byte, or as a list; always with a manifest."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from curate import engine, provenance, sets, storage
from curate.atomic import replacing, sweep
from curate.catalog import Catalog
from curate.engine import Resources
from curate.engine.copying import Output, WriteShard
from curate.errors import CurateError
from curate.progress import bar, log
from curate.stages.packing import Members, Packed
from curate.workspaces import LOCK, TEMPORARY

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_ROWS_A_GROUP = 1 << 18  # of the index
_PLAN = ".curate-export"
MANIFEST = "manifest.json"


def export(
    catalog: Catalog | str | Path,
    selection: str,
    out: str | Path,
    *,
    samples_per_shard: int | None = None,
    index_only: bool = False,
    workers: int = 1,
    name: str | None = None,
) -> str:
    """Write the selection's samples to the folder `out`, and return its path as it was given.

    By default one output shard for one input shard, under the same name, each sample's bytes as they came.
    With `samples_per_shard` evenly filled shards, numbered from 000000; keys that would meet in one shard get
    the input shard's id in front. With `index_only` no images, only index.parquet (url, key, sample_id).
    """
    if samples_per_shard is not None and (samples_per_shard < 1 or index_only):
        raise CurateError("--samples-per-shard takes a number from 1, and no --index-only")
    catalog = Catalog(catalog)
    row = catalog.require("selection", selection)
    shown, out = str(out), storage.at(out)
    layout = "index" if index_only else f"{samples_per_shard} samples a shard" if samples_per_shard else "mirror"
    members = Members(catalog, row)
    fingerprint = provenance.fingerprint("export", {"layout": layout}, row["fingerprint"], members.fingerprint)
    with catalog.reading() as connection:
        called = sets.check_name(name) if name else _free_name(connection, out)
    with catalog.only_writer(out, f"the export '{out}'"):
        if _is_finished(out, fingerprint):
            (out / _PLAN).unlink(missing_ok=True)
            sweep(out)
            log.info("nothing to do: %s holds this export already", shown)
            return shown
        _claim(out, fingerprint)
        catalog.warn_if_out_of_date("selection", selection)
        settings = {"selection": selection, "path": str(out), "layout": layout}
        with catalog.run("export", called, settings, made_from=row["run_id"], fingerprint=fingerprint) as run_id:
            written, changed = _write(out, members, layout, Resources(workers))
            sweep(out)  # a machine that was lost leaves what it was writing, which others have made again
            head = {"export": called, **settings, "num_shards": len(written), "num_samples": len(members),
                    "num_bytes": sum(shard["num_bytes"] for shard in written),
                    "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
            with catalog.writing() as connection:
                if not name:  # another export may have taken it since
                    head["export"] = _free_name(connection, out)
                sets.replace(connection, "export", None, head)
            # Last, because the manifest says that the export is whole.
            _write_manifest(out, _manifest(catalog, row, head, members, changed, written))
        (out / _PLAN).unlink(missing_ok=True)
    log.info("exported %s samples in %s shards, %s bytes, to %s", f"{len(members):,}", f"{len(written):,}",
             f"{head['num_bytes']:,}", shown)  # fmt: skip
    return shown


def _free_name(connection: "DuckDBPyConnection", out: Path) -> str:
    """The folder's name; with a number behind it where an export into another folder has that name."""
    taken = dict(connection.execute("select export, path from exports").fetchall())
    plain = re.sub(r"[^A-Za-z0-9@_.,+=-]", "_", out.name).lstrip(".") or "export"
    names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
    return sets.check_name(next(name for name in names if taken.get(name, str(out)) == str(out)))


def _read_manifest(out: Path) -> dict[str, Any]:
    try:
        with storage.opened(out / MANIFEST) as file:
            manifest = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _is_finished(out: Path, fingerprint: str) -> bool:
    manifest = _read_manifest(out)
    if manifest.get("fingerprint") != fingerprint or not (out / "index.parquet").is_file():
        return False
    files = [(out / shard["path"], shard["num_bytes"]) for shard in manifest["shards"]]
    return all(path.is_file() and path.stat().st_size == num_bytes for path, num_bytes in files)


def _claim(out: Path, fingerprint: str) -> None:
    """Mark the folder as this export's, or go on with one that was killed. CurateError if it holds something else."""
    plan = out / _PLAN
    begun = plan.is_file() and plan.read_text(encoding="utf-8") == fingerprint
    if begun or _read_manifest(out).get("fingerprint") == fingerprint:
        sweep(out)
        return
    unborn = storage.listed(out, f"{TEMPORARY}*{_PLAN}")  # a plan that a kill kept from getting its name
    if any(path.name not in (LOCK, _PLAN) for path in storage.listed(out, "*") if path not in unborn):
        raise CurateError(f"'{out}' holds other files or another export: choose an empty or new folder")
    for path in unborn:
        path.unlink()
    with replacing(plan) as temporary:
        temporary.write_text(fingerprint, encoding="utf-8")


def _write(out: Path, members: Members, layout: str, resources: Resources) -> tuple[list[dict[str, Any]], int]:
    """The output shards, while the index grows beside them; what the manifest says of each, and how many keys had to change."""
    written = []
    with (
        replacing(out / "index.parquet") as temporary,
        Index(temporary, members, with_shards=layout != "index") as index,
        bar("export", len(members)) as advance,
    ):

        def outputs() -> Iterator[Output]:
            for packed in members.packed(layout):
                index.add(packed)
                if packed.output:
                    yield packed.output
                else:
                    advance(len(packed.keys), len(packed.keys))

        for outcome in engine.map(WriteShard(out), outputs(), resources, advance=advance):
            if outcome.error:
                raise CurateError(outcome.error)
            written.append(outcome.result)
    return written, index.changed


class Index:
    """index.parquet: where each member came from and, beside shards, where it went; written as outputs pass by."""

    def __init__(self, path: Path, members: Members, *, with_shards: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.changed = 0  # keys that are not those of the source
        self._urls = pa.array([source.url for source in members.sources.values()], pa.string())
        self._shard_ids = np.array(list(members.sources), np.int64)
        self._with_shards, self._waiting = with_shards, list[Packed]()
        text = pa.string()
        fields = {"url": pa.dictionary(pa.int32(), text), "key": text, "sample_id": pa.int64()}
        fields |= {"shard": text, "exported_key": text} if with_shards else {}
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, packed: Packed) -> None:
        """Note the members of an output."""
        self._waiting.append(packed)
        if packed.output:
            self.changed += sum(len(piece.prefixes) for piece in packed.output.pieces)
        if sum(len(each.keys) for each in self._waiting) >= _ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._waiting:
            return
        shards, ids, keys = (np.concatenate([getattr(each.rows, name) for each in self._waiting]) for name in
                             ("shards", "ids", "keys"))  # fmt: skip
        places = np.searchsorted(self._shard_ids, shards).astype(np.int32)
        columns = [pa.DictionaryArray.from_arrays(places, self._urls), pa.array(keys, pa.string()), pa.array(ids)]
        if self._with_shards:
            paths = np.array([each.output.path for each in self._waiting if each.output], object)
            columns.append(pa.array(np.repeat(paths, [len(each.keys) for each in self._waiting]), pa.string()))
            columns.append(pa.array([key for each in self._waiting for key in each.keys], pa.string()))
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._waiting.clear()


def _manifest(
    catalog: Catalog, selection: dict[str, Any], head: dict[str, Any], members: Members, changed: int,
    written: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    with catalog.reading() as connection:
        rows = connection.execute(
            "with recursive chain as (select * from runs where run_id = ? union all select runs.* from chain "
            "join runs on runs.run_id = chain.made_from) "
            "select stage, name, arguments, version, git_commit, fingerprint, strftime(started_at, '%Y-%m-%dT%H:%M:%SZ') "
            "from chain order by run_id desc",
            [selection["run_id"]],
        ).fetchall()
    keys = f"{changed} keys have the input shard's id in front: exported_key in index.parquet" if changed else "as they came"
    return {
        "curate": provenance.version(),
        "fingerprint": head["fingerprint"],
        "selection": {key: selection[key] for key in selection if key != "run_id"},
        "layout": head["layout"],
        "num_samples": head["num_samples"],
        "num_shards": head["num_shards"],
        "num_bytes": head["num_bytes"],
        "keys": keys,
        "shards": written,
        "sources": [source._asdict() for shard_id, source in sorted(members.sources.items())],
        "lineage": [
            dict(zip(("stage", "name", "arguments", "version", "git_commit", "fingerprint", "started_at"), row, strict=True))
            for row in rows
        ],
    }


def _write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    for step in manifest["lineage"]:
        step["arguments"] = json.loads(step["arguments"])
    with replacing(out / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
