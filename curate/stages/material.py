"""What probes and validations train on: reduced vectors or images, labels, and the test samples, as files in a folder."""

from pathlib import Path
from typing import Any

import numpy as np

from curate import corpus, engine
from curate.catalog import Catalog
from curate.engine import Resources
from curate.errors import CurateError
from curate.models import Model
from curate.progress import bar
from curate.shards import expand
from curate.stages.embed import embed, preprocessing_of


def embed_beside(
    catalog: Catalog, parent: dict[str, Any], patterns: list[str], folder: str = "test"
) -> tuple[Catalog, list[str]]:
    """Embed test shards, or another task's, by the same encoder into a catalog inside this one; return it and the urls."""
    inner = Catalog(catalog.path / folder)
    urls = expand(patterns)
    embed(inner, urls, encoder=parent["encoder"], checkpoint=parent["checkpoint"], label=parent["label_source"],
          decode=preprocessing_of(parent)["decode"], name=parent["embedding"])  # fmt: skip
    return inner, urls


def check_apart(trained: tuple[Catalog, list[str] | None], tested: tuple[Catalog, list[str]]) -> None:
    """CurateError where a shard, under whatever name, would be trained on and tested with; all of a catalog, or those urls."""
    found = []
    for catalog, urls in (trained, tested):
        with catalog.reading() as connection:
            found.append(dict(connection.execute(
                "select fingerprint, url from shards where num_samples > 0 "  # empty ones are all the same
                "and ($1::text[] is null or url in (select unnest($1::text[])))",
                [urls],
            ).fetchall()))  # fmt: skip
    both = sorted(found[1][same] for same in found[0].keys() & found[1].keys())
    if both:
        raise CurateError(f"'{both[0]}' is among the shards to train on too: give others with --test")


def prepare(
    catalog: Catalog, embedding: str, folder: Path, made: list[Model], classes: dict[str, int], reduction: Any = None,
    urls: list[str] | None = None, within: str | None = None,
) -> Any:  # fmt: skip
    """Write what the models read into `folder`; return how vectors were reduced, for the test samples.

    `urls` are the only shards that count, `within` is the only selection. How vectors are reduced depends on the whole
    embedding all the same, so that corpora of several sizes are seen alike.
    """
    from curate import vectors
    from curate.engine import features, pixels

    folder.mkdir()
    files = catalog.vector_files(embedding)
    if urls is not None:
        with catalog.reading() as connection:
            rows = connection.execute("select shard_id from shards where url in (select unnest(?))", [urls]).fetchall()
        files = {file: count for file, count in files.items() if (int(file.stem),) in set(rows)}
    total = sum(files.values())
    if not total:
        raise CurateError(f"the embedding '{embedding}' in '{catalog.path}' is empty: look at `curate query failures`")
    ids = np.concatenate([vectors.read_ids(file) for file in files])
    if within is not None:
        ids = ids[np.isin(ids, members(catalog, within))]
    np.save(folder / "ids.npy", ids)
    np.save(folder / "labels.npy", corpus.labels(catalog, ids, classes))
    if any(not model.edge for model in made):
        with bar("reduce", 2 * total) as advance:
            reduction = reduction or features.fit(files, 0, advance)
            features.write(files, ids, reduction, folder / "rows.npy", advance)
    edges = {model.edge for model in made if model.edge}
    if edges:
        places = corpus.places(catalog, ids)
        np.savez(folder / "places.npz", **places._asdict())
        for edge in edges:
            if len(ids) * edge * edge * 3 <= pixels.CACHE_BYTES:
                with bar("decode", len(ids)) as advance:
                    pixels.fill(places, edge, folder / f"pixels-{edge}.npy", Resources(engine.cores()), advance)
    return reduction


def members(catalog: Catalog, selection: str) -> np.ndarray:
    """The ids of a selection's members, int64 [n]. Raises CurateError if there is no such selection."""
    catalog.require("selection", selection)
    with catalog.reading() as connection:
        found = connection.execute("select sample_id from members where selection = ? order by 1", [selection]).fetchnumpy()
    return np.asarray(found["sample_id"], np.int64)
