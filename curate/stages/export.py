"""`curate export`: the samples of a selection as tar shards, byte for byte, or as a list; always with a manifest."""

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from curate import engine, provenance, sets
from curate.atomic import LOCK, replacing, sweep
from curate.catalog import Catalog
from curate.engine import Resources
from curate.engine.copying import Output, Piece, Source, WriteShard, renamed_key
from curate.errors import CurateError
from curate.progress import bar, log

_PLAN = ".curate-export"


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
    shown, out = str(out), Path(os.path.abspath(os.path.expanduser(out)))
    layout = "index" if index_only else f"{samples_per_shard} samples a shard" if samples_per_shard else "mirror"
    members = Members(catalog, row)
    fingerprint = provenance.fingerprint("export", {"layout": layout}, row["fingerprint"], members.fingerprint)
    name = sets.check_name(name) if name else _free_name(catalog, out)
    with catalog.only_writer(out, f"the export '{out}'"):
        if _is_finished(out, fingerprint):
            log.info("nothing to do: %s holds this export already", shown)
            return shown
        _claim(out, fingerprint)
        catalog.warn_if_out_of_date("selection", selection)
        settings = {"selection": selection, "path": str(out), "layout": layout}
        with catalog.run("export", name, settings, made_from=row["run_id"], fingerprint=fingerprint) as run_id:
            outputs = [] if index_only else members.repacked(samples_per_shard) if samples_per_shard else members.mirrored()
            written = _write(out, outputs, Resources(workers))
            _write_index(out, members, outputs)
            head = {"export": name, **settings, "num_shards": len(written), "num_samples": len(members.ids),
                    "num_bytes": sum(shard["num_bytes"] for shard in written),
                    "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
            with catalog.writing() as connection:
                sets.replace(connection, "export", None, head)
            # Last, because the manifest says that the export is whole.
            _write_manifest(out, _manifest(catalog, row, head, members, outputs, written))
        (out / _PLAN).unlink(missing_ok=True)
    log.info("exported %s samples in %s shards, %s bytes, to %s", f"{len(members.ids):,}", f"{len(written):,}",
             f"{head['num_bytes']:,}", shown)  # fmt: skip
    return shown


def _free_name(catalog: Catalog, out: Path) -> str:
    """The folder's name; with a number behind it where an export into another folder has that name."""
    with catalog.reading() as connection:
        taken = dict(connection.execute("select export, path from exports").fetchall())
    plain = re.sub(r"[^A-Za-z0-9@_.,+=-]", "_", out.name).lstrip(".") or "export"
    names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
    return sets.check_name(next(name for name in names if taken.get(name, str(out)) == str(out)))


class Members:
    """The members of a selection in tar order, as columns."""

    def __init__(self, catalog: Catalog, selection: dict[str, Any]) -> None:
        with catalog.reading() as connection:
            rows = connection.execute(
                "select sample_id, shard_id, key, byte_offset, samples.num_bytes from members join samples using (sample_id) "
                "where selection = ? order by sample_id", [selection["selection"]],
            ).fetchnumpy()  # fmt: skip
            shards = {
                shard_id: Source(*source)
                for shard_id, *source in connection.execute(
                    "select shard_id, url, num_bytes, version, fingerprint from shards where num_samples is not null"
                ).fetchall()
            }
        self.ids, self.shards, self.offsets, self.lengths = (
            np.asarray(rows[name], np.int64) for name in ("sample_id", "shard_id", "byte_offset", "num_bytes")
        )
        self.keys = np.asarray(rows["key"], object)
        self.sources = {int(shard_id): shards[int(shard_id)] for shard_id in np.unique(self.shards)}
        lost = selection["num_samples"] - len(self.ids)
        if lost:
            name = selection["selection"]
            raise CurateError(f"{lost:,} members of '{name}' were in shards that have been mended since: select them anew")

    @property
    def fingerprint(self) -> str:
        return ",".join(source.fingerprint for source in self.sources.values())

    def mirrored(self) -> list[Output]:
        """One output for each input shard that has members, at the same place below the inputs' common folder."""
        names = _below_common_folder([source.url for source in self.sources.values()])
        return [
            Output(names[self.sources[shard_id].url], [self._piece(shard_id, part, self._prefixes(part))])
            for shard_id, part in self._by_shard(0, len(self.ids))
        ]

    def repacked(self, per_shard: int) -> list[Output]:
        """Evenly filled outputs, as few as hold at most `per_shard` samples each."""
        count = -(-len(self.ids) // per_shard)
        bounds = np.linspace(0, len(self.ids), count + 1).round().astype(int)
        return [
            Output(f"{number:06d}.tar", self._pieces(int(start), int(stop)))
            for number, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        prefixes = self._prefixes(slice(start, stop), everywhere=True)
        pieces = []
        for shard_id, part in self._by_shard(start, stop):
            here = {place: prefixes[place + part.start - start] for place in range(part.stop - part.start)
                    if place + part.start - start in prefixes}  # fmt: skip
            pieces.append(self._piece(shard_id, part, here))
        return pieces

    def _prefixes(self, part: slice, *, everywhere: bool = False) -> dict[int, str]:
        """What to put before the keys of samples that a reader of the output would take for one, by place in the part.

        A mirrored shard keeps the twins that its source has, unless what lay between them is gone; in a
        repacked one no key comes twice.
        """
        keys = self.keys[part]
        if not everywhere and not (keys[1:] == keys[:-1]).any():
            return {}
        places: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        taken = set(places)
        prefixes: dict[int, str] = {}
        for twins in places.values():
            meet = twins if everywhere else [later for former, later in itertools.pairwise(twins) if later == former + 1]
            for place in meet if len(twins) > 1 else []:
                shard_id, sample_id = int(self.shards[part][place]), int(self.ids[part][place])
                choices = itertools.chain([f"{shard_id}-"], (f"{shard_id}-{sample_id}-" * n for n in itertools.count(1)))
                prefixes[place] = next(text for text in choices if renamed_key(keys[place], text) not in taken)
                taken.add(renamed_key(keys[place], prefixes[place]))
        return prefixes

    def _by_shard(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        ids = self.shards[start:stop]
        bounds = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
        for first, last in itertools.pairwise(bounds):
            if last > first:
                yield int(ids[first]), slice(start + first, start + last)

    def _piece(self, shard_id: int, part: slice, prefixes: dict[int, str]) -> Piece:
        return Piece(self.sources[shard_id], self.offsets[part], self.lengths[part], prefixes)


def _below_common_folder(urls: list[str]) -> dict[str, str]:
    """A relative path for each URL: what follows the folder that all have in common, a scheme being a folder too."""
    parts = {url: [part for part in url.replace("://", "/").split("/") if part] for url in urls}
    folders = [path[:-1] for path in parts.values()]
    shared = 0
    while all(len(folder) > shared and folder[shared] == folders[0][shared] for folder in folders):
        shared += 1
    return {url: "/".join(path[shared:]) for url, path in parts.items()}


def _read_manifest(out: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
    if any(path.name not in (LOCK, _PLAN) for path in out.iterdir()):
        raise CurateError(f"'{out}' holds other files or another export: choose an empty or new folder")
    with replacing(plan) as temporary:
        temporary.write_text(fingerprint, encoding="utf-8")


def _write(out: Path, outputs: list[Output], resources: Resources) -> list[dict[str, Any]]:
    written = []
    total = sum(len(piece.offsets) for output in outputs for piece in output.pieces)
    with bar("export", total) as advance:
        for outcome in engine.map(WriteShard(out), outputs, resources, advance=advance):
            if outcome.error:
                raise CurateError(outcome.error)
            written.append(outcome.result)
    return written


def _write_index(out: Path, members: Members, outputs: list[Output]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard_ids, places = np.unique(members.shards, return_inverse=True)
    urls = pa.array([members.sources[int(shard_id)].url for shard_id in shard_ids], pa.string())
    columns = {"url": pa.DictionaryArray.from_arrays(places.astype(np.int32), urls), "key": pa.array(members.keys, pa.string()),
               "sample_id": members.ids}  # fmt: skip
    if outputs:
        counts = [sum(len(piece.offsets) for piece in output.pieces) for output in outputs]
        prefixes = [
            piece.prefixes.get(place) for output in outputs for piece in output.pieces for place in range(len(piece.offsets))
        ]
        exported = [renamed_key(key, prefix) if prefix else key for key, prefix in zip(members.keys, prefixes, strict=True)]
        columns["shard"] = pa.array(np.repeat([output.path for output in outputs], counts), pa.string())
        columns["exported_key"] = pa.array(exported, pa.string())
    with replacing(out / "index.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)


def _manifest(
    catalog: Catalog, selection: dict[str, Any], head: dict[str, Any], members: Members, outputs: list[Output],
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
    changed = sum(len(piece.prefixes) for output in outputs for piece in output.pieces)
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
    with replacing(out / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
