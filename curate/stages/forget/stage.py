"""`curate forget`: samples leave the catalog and its exports, and do not come back.

What is to be done is written down before anything is: after a kill, the next call goes on with it,
and `curate verify` says that it is not finished. Files are written anew first, the database last,
in one transaction, and then copied without its free blocks.
"""

import contextlib
import datetime
import itertools
import secrets
from pathlib import Path
from typing import Annotated

import numpy as np

from curate.catalog import provenance, runs, sets
from curate.catalog.catalog import Catalog
from curate.catalog.compaction import compact
from curate.catalog.records import EmbeddingRecord, ProbeRecord
from curate.errors import CurateError, OptionError
from curate.formats.sample_ids import shard_filename
from curate.formats.tombstones import Tombstones
from curate.formatting import count_of
from curate.options import EmbeddingName, Option, verb
from curate.progress import log, progress_bar
from curate.stages.embed.commit import commit_pending
from curate.stages.forget.catalog_rows import FileChecksums, delete_rows, distinctive_keys
from curate.stages.forget.likeness import draw_likeness, find_like
from curate.stages.forget.patterns import make_patterns
from curate.stages.forget.receipt import Receipt
from curate.stages.forget.rewriting import (
    RewrittenShard,
    filter_part,
    filter_rows,
    rewrite_export,
    rewrite_list,
    rewrite_shard,
)
from curate.stages.forget.targets import (
    KeyReport,
    Target,
    find_copies,
    find_near_copies,
    find_targets,
    load_raw_vectors,
    read_target_image,
    redact,
)
from curate.stages.set_files import inner_catalogs, lock_set
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.checksums import file_checksum
from curate.storage.locks import remove_temporary_files

PLAN_NAME = "forgetting.json"  # what is not finished yet
_MAX_NEAR = 1000  # near copies in a receipt
_SAME = 0.9999  # a cosine of vectors that may be the same bytes
_SALT_BYTES = 16


@verb()
def forget(
    catalog: Catalog | str | Path,
    keys: Annotated[list[str] | str | None, Option("Keys of samples.", metavar="KEY")] = None,
    *,
    keys_file: Annotated[
        str | Path | None, Option("A file with a key a line.", metavar="FILE")
    ] = None,
    checksums: Annotated[
        list[str] | str | None,
        Option("The XXH3 of an image's file, 16 hexadecimal digits; repeatable.", metavar="XXH3"),
    ] = None,
    where: Annotated[
        str | None, Option("A condition in SQL on sample_scores.", metavar="SQL")
    ] = None,
    like: Annotated[
        list[str] | str | None,
        Option(
            "An image's file: samples that look like it; repeatable. They are drawn first, and "
            "forgotten with --yes.",
            metavar="IMAGE",
        ),
    ] = None,
    yes: Annotated[bool, Option("Forget what --like finds: you have seen the picture of it.")] = (
        False
    ),
    embedding: EmbeddingName = None,
    rewrite_shards: Annotated[
        bool, Option("Cut the samples out of the corpus' shards too, which are yours.")
    ] = False,
    salted: Annotated[
        bool,
        Option("Keep tombstones with a salt, so that nobody can look up a known image in them."),
    ] = False,
    eps: Annotated[
        float,
        Option(
            "What looks like a picture of --like, and which samples that stay are listed: a cosine "
            "above 1 − eps.",
            minimum=0.0,
            maximum=2.0,
        ),
    ] = 0.05,
    receipt: Annotated[
        str | Path | None,
        Option("JSON to write.", metavar="FILE", default="forgotten-TIME.json in this folder"),
    ] = None,
) -> str:
    """Remove samples, and all with the same image, from the catalog and its exports, for good.

    Their rows, vectors and outputs of probes go; exports and lists that have them are written anew;
    pages and pictures in the catalog that may show them are deleted. Their images leave tombstones,
    by which later embeddings leave them out under any key. The receipt says what went from where,
    which samples are near to them, and what was made with them. What looks like an image of `like`,
    by the vectors of `embedding`, is drawn into figures/forget-like.png of the catalog, for you to
    look at; it is forgotten when you say `yes`. Without anything to forget, a forgetting that was
    killed is finished. Returns the receipt's path. Raises CurateError where nothing matches, or
    while another command is at work.
    """
    catalog = Catalog(catalog)
    with catalog.reading():  # says where there is no catalog
        pass
    _check_alone(catalog)
    with catalog.write_lock(catalog.path / "locks" / "forget", "what is forgotten"):
        unfinished = _finish(catalog)
        asked_for = _read_keys(keys, keys_file)
        checksum_list = [checksums] if isinstance(checksums, str) else list(checksums or [])
        pictures = [like] if isinstance(like, str) else list(like or [])
        if not asked_for and not checksum_list and where is None and not pictures:
            if unfinished:
                return unfinished
            raise OptionError(
                "nothing to forget: give keys, --keys-file, --checksums, --where or --like"
            )
        for embedding in catalog.list_names(EmbeddingRecord):
            commit_pending(catalog, embedding)
        alike = _find_alike(catalog, pictures, eps, embedding, is_confirmed=yes)
        targets, report = find_targets(catalog, asked_for, checksum_list, where, alike)
        _log_report(report)
        if not targets:
            raise CurateError("no sample matches: nothing was forgotten")
        plan = _make_plan(catalog, targets, _choose_location(catalog, receipt), rewrite_shards, eps)
        _make_tombstones(catalog, plan, salted=salted)
        plan.save(str(catalog.path / PLAN_NAME))
        _carry_out(catalog, plan)
        return plan.location


def _find_alike(
    catalog: Catalog,
    pictures: list[str],
    eps: float,
    embedding: str | None,
    *,
    is_confirmed: bool,
) -> list[int]:
    """The ids of samples that look like the pictures, once their picture was looked at.

    Raises CurateError until then.
    """
    if not pictures:
        return []
    found = find_like(catalog, pictures, eps, embedding)
    if not found:
        raise CurateError(f"no sample has a cosine above {1 - eps:g} to --like: raise --eps")
    if not is_confirmed:
        path = draw_likeness(catalog, pictures, found)
        raise CurateError(
            f"nothing was forgotten yet: {count_of(len(found), 'sample')} with cosines from "
            f"{found[0].cosine:.3f} to {found[-1].cosine:.3f} are in {path}; look at it, then add "
            "--yes, or change --eps"
        )
    return [one.sample_id for one in found]


def load_plan(catalog: Catalog) -> Receipt | None:
    """The forgetting that is not finished, if there is one. Raises CurateError."""
    path = catalog.path / PLAN_NAME
    return Receipt.load(str(path)) if path.is_file() else None


def _finish(catalog: Catalog) -> str | None:
    """Finish what a killed call has begun; returns its receipt."""
    plan = load_plan(catalog)
    if plan is None:
        return None
    log.info("going on with the forgetting of %s", count_of(len(plan.samples), "sample"))
    _make_tombstones(catalog, plan, salted=False)
    _carry_out(catalog, plan)
    return plan.location


def _check_alone(catalog: Catalog) -> None:
    """CurateError while another command may read or write what is to go."""
    with catalog.writing() as connection:
        runs.mark_killed(connection)
        rows = connection.execute(
            "select stage, name, process, host from runs where status = 'running'"
        ).fetchall()
    for stage, name, process, host in rows:
        raise CurateError(
            f"`curate {stage}` is at work on '{name}' (process {process} on {host}): "
            "wait until it ends, or stop it"
        )


def _read_keys(keys: list[str] | str | None, keys_file: str | Path | None) -> list[str]:
    result = [keys] if isinstance(keys, str) else list(keys or [])
    if keys_file is not None:
        try:
            text = files.read_bytes(files.resolve(keys_file)).decode("utf-8")
        except (OSError, ValueError) as error:
            raise OptionError(f"--keys-file {keys_file}: it cannot be read ({error})") from error
        result += [line for line in text.splitlines() if line]
    return list(dict.fromkeys(result))


def _log_report(report: KeyReport) -> None:
    if report.missing:
        shown = ", ".join(report.missing[:10]) + (", …" if len(report.missing) > 10 else "")
        log.warning("%s not in the catalog: %s", f"{len(report.missing):,}", shown)
    if report.repeated:
        pairs = [f"{key} ({count})" for key, count in list(report.repeated.items())[:10]]
        log.warning(
            "%s of several samples, all of which go: %s",
            count_of(len(report.repeated), "key"),
            ", ".join(pairs),
        )


def _choose_location(catalog: Catalog, receipt: str | Path | None) -> str:
    now = datetime.datetime.now(datetime.UTC)
    location = files.resolve(str(receipt or f"forgotten-{now:%Y%m%d-%H%M%S}.json"))
    if not files.is_url(location) and Path(location).is_relative_to(catalog.path):
        raise OptionError(
            f"--receipt {receipt or location}: it names what was forgotten, so it cannot be in the "
            "catalog: choose another folder"
        )
    return location


def _make_plan(
    catalog: Catalog, targets: list[Target], location: str, rewrite_shards: bool, eps: float
) -> Receipt:
    near = find_near_copies(catalog, targets, eps, _MAX_NEAR)
    same_ids = {copy.forgotten_id for copy in near if copy.cosine >= _SAME}
    patterns: set[int] = set()
    for target in targets:
        image = read_target_image(target) if target.length else None
        patterns.update(make_patterns(image or b""))
    for vector in load_raw_vectors(
        catalog, [target for target in targets if target.sample_id not in same_ids]
    ):
        patterns.update(make_patterns(vector))
    with catalog.reading() as connection:
        embeddings = [
            sets.find_set(connection, EmbeddingRecord, name)
            for name in sets.list_sets(connection, EmbeddingRecord)
        ]
        made_with = sets.list_dependents(
            connection, [embedding for embedding in embeddings if embedding]
        )
        # Selections by chance were made from no embedding, and have the samples all the same.
        made_with += connection.execute(
            "with chosen as (select distinct selection from members "
            "where sample_id in (select unnest($1::bigint[]))) "
            "select 'selection', selection from chosen "
            "union select 'export', export from exports join chosen using (selection) order by all",
            [[target.sample_id for target in targets]],
        ).fetchall()
        searched_keys = distinctive_keys(connection, targets)
        shard_bytes = dict(
            connection.execute(
                "select url, num_bytes from shards where shard_id in (select unnest($1::bigint[]))",
                [sorted({target.shard_id for target in targets})],
            ).fetchall()
        )
    return Receipt(
        curate=provenance.version(),
        catalog=str(catalog.path),
        forgotten_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        samples=targets,
        rewrite_shards=rewrite_shards,
        location=location,
        shard_bytes=shard_bytes,
        near_copies=near,
        made_with=list(dict.fromkeys(made_with)),
        without_tombstone=[target.key for target in targets if target.image_bytes < 0],
        patterns=sorted(patterns),
        searched_keys=searched_keys,
    )


def _make_tombstones(catalog: Catalog, plan: Receipt, *, salted: bool) -> None:
    """Add the images to the lists of the catalog and of those inside it."""
    tombstones = Tombstones.load(catalog.path)
    if not tombstones.digests and salted:
        tombstones = tombstones._replace(salt=secrets.token_hex(_SALT_BYTES))
    elif salted and not tombstones.salt:
        log.warning("the catalog has tombstones without a salt: these are without, too")
    digests = {
        tombstones.make(target.image_bytes, target.image_checksum)
        for target in plan.samples
        if target.image_bytes >= 0
    }
    tombstones = tombstones._replace(digests=tombstones.digests | digests)
    for folder in (catalog.path, *(inner.path for inner in inner_catalogs(catalog))):
        tombstones.save(folder)


def _carry_out(catalog: Catalog, plan: Receipt) -> None:
    """All steps, each of which may be taken again. Raises CurateError where one cannot be."""
    arguments = {"num_samples": len(plan.samples), "rewrite_shards": plan.rewrite_shards}
    with contextlib.ExitStack() as stack:
        for embedding in catalog.list_names(EmbeddingRecord):
            stack.enter_context(lock_set(catalog, EmbeddingRecord.kind, embedding))
        stack.enter_context(catalog.record_run("forget", "forget", arguments))
        shards = _rewrite_shards(plan) if plan.rewrite_shards else []
        plan.kept_shards = sorted({one.url for one in plan.samples} - {one.url for one in shards})
        _rewrite_exports(catalog, plan, shards)
        plan.deleted = sorted({*plan.deleted, *_delete_pictures(catalog)})
        _redact_imports(catalog, plan)
        _forget_rows(catalog, plan, plan.samples, shards)
    for inner in inner_catalogs(catalog):
        copies = find_copies(inner, plan.samples)
        if copies:
            _forget_rows(inner, plan, copies, [])
        _give_back(inner)
    _give_back(catalog)
    plan.complete = True
    plan.save(plan.location)
    (catalog.path / PLAN_NAME).unlink()
    log.info(
        "forgot %s; %s near to them stay; the receipt is %s",
        count_of(len(plan.samples), "sample"),
        count_of(len(plan.near_copies), "sample"),
        plan.location,
    )
    if plan.kept_shards:
        log.warning(
            "%s still have their bytes: `curate forget --rewrite-shards` cuts them out",
            count_of(len(plan.kept_shards), "shard"),
        )


def _give_back(catalog: Catalog) -> None:
    """Rewrite the database without its free blocks. CurateError where that is not possible now."""
    remove_temporary_files(catalog.path)
    if not compact(catalog.database_path, least_free=0.0):
        raise CurateError(
            "the forgetting is not complete: the database's free blocks still hold what was "
            "deleted, because another program has it open; close it, then `curate forget` again"
        )


def _rewrite_shards(plan: Receipt) -> list[RewrittenShard]:
    rewritten = []
    with progress_bar("rewrite", sum(plan.shard_bytes.values()), "shards") as advance:
        for url, old_bytes in plan.shard_bytes.items():
            targets = [target for target in plan.samples if target.url == url]
            if any(target.length for target in targets):
                rewritten.append(rewrite_shard(targets, old_bytes))
                plan.removed[url] = len(targets)
            advance(old_bytes, 1)
    return rewritten


def _rewrite_exports(catalog: Catalog, plan: Receipt, shards: list[RewrittenShard]) -> None:
    """The folders that the catalog knows, and the files that its runs wrote by `--format`."""
    ids = np.array([target.sample_id for target in plan.samples], np.int64)
    sources = {shard.url: shard for shard in shards}
    with catalog.reading() as connection:
        folders = connection.execute("select export, path from exports").fetchall()
        lists = connection.execute(
            "select distinct json_extract_string(arguments, '$.path') from runs "
            "where stage = 'export' and json_extract_string(arguments, '$.format') is not null"
        ).fetchall()
    for name, folder in folders:
        if not files.is_folder(folder):
            continue
        try:
            manifest = rewrite_export(catalog, folder, ids, sources, plan.searched_keys)
        except (OSError, ValueError) as error:
            raise CurateError(
                f"the export '{name}' cannot be rewritten ({error}): mend or remove {folder}, then "
                "`curate forget` again"
            ) from error
        if manifest is not None:
            plan.rewritten.append(folder)
            with catalog.writing() as connection:
                connection.execute(
                    "update exports set num_samples = ?, num_bytes = ? where export = ?",
                    [manifest.num_samples, manifest.num_bytes, name],
                )
    for (location,) in lists:
        if files.is_file(location) and rewrite_list(location, plan.samples, sources):
            plan.rewritten.append(location)


def _delete_pictures(catalog: Catalog) -> list[str]:
    """The report, all pictures, the atlas' table: which of them show a sample is not known."""
    paths = [
        *catalog.path.glob("*.html"),
        *catalog.path.glob("figures/*"),
        *catalog.path.glob("view/*"),
    ]
    for path in paths:
        if path.is_file():
            path.unlink()
    return [str(path) for path in paths]


def _redact_imports(catalog: Catalog, plan: Receipt) -> None:
    """The rows of imported tables that belong to no sample, or to several, which have keys."""
    for path in catalog.path.glob("imports/*.csv"):
        text = path.read_text(encoding="utf-8")
        new_text = redact(text, plan.searched_keys)
        if new_text != text:
            with atomic_write(path) as temporary:
                temporary.write_text(new_text, encoding="utf-8")
            plan.rewritten.append(str(path))


def _forget_rows(
    catalog: Catalog, plan: Receipt, targets: list[Target], shards: list[RewrittenShard]
) -> None:
    """Vectors and outputs of probes first, whose checksums the rows have."""
    ids = np.array([target.sample_id for target in targets], np.int64)
    shard_ids = sorted({target.shard_id for target in targets})
    checksums = FileChecksums({}, {})
    embeddings = catalog.list_names(EmbeddingRecord)
    with progress_bar("vectors", len(embeddings) * len(shard_ids), "files") as advance:
        for embedding, shard_id in itertools.product(embeddings, shard_ids):
            for location, by_file in (
                (catalog.vector_file(embedding, shard_id), checksums.vectors),
                (catalog.caption_file(embedding, shard_id), checksums.captions),
            ):
                if filter_rows(location, ids, has_vectors=True):
                    plan.removed[location] = len(ids)
                if files.is_file(location):  # also one that was written before a kill
                    by_file[embedding, shard_id] = file_checksum(location)
            advance(1, 1)
    names = [shard_filename(shard_id) for shard_id in shard_ids]
    for name in catalog.list_names(ProbeRecord):
        for part in catalog.probe_parts(catalog.require(ProbeRecord, name)):
            if filter_part(part, names, ids):
                plan.removed[str(part)] = len(ids)
    with catalog.writing() as connection:
        for table, count in delete_rows(
            connection, targets, shards, checksums, plan.searched_keys
        ).items():
            plan.removed[table] = plan.removed.get(table, 0) + count
