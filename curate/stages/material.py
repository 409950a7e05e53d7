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
from curate.stages.embed import embed


def embed_test(catalog: Catalog, parent: dict[str, Any], patterns: list[str]) -> tuple[Catalog, list[str]]:
    """Embed the test shards, by the same encoder, into the catalog `test` inside this one; return it and the urls."""
    inner = Catalog(catalog.path / "test")
    urls = expand(patterns)
    embed(inner, urls, encoder=parent["encoder"], checkpoint=parent["checkpoint"], label=parent["label_source"],
          name=parent["embedding"])  # fmt: skip
    return inner, urls


def prepare(
    catalog: Catalog, embedding: str, folder: Path, made: list[Model], classes: dict[str, int], reduction: Any = None,
    urls: list[str] | None = None,
) -> Any:  # fmt: skip
    """Write what the models read into `folder`; return how vectors were reduced, for the test samples."""
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
    np.save(folder / "ids.npy", ids)
    np.save(folder / "labels.npy", corpus.labels(catalog, ids, classes))
    if any(not model.edge for model in made):
        with bar("reduce", 2 * total) as advance:
            reduction = reduction or features.fit(files, 0, advance)
            features.write(files, reduction, folder / "rows.npy", advance)
    edges = {model.edge for model in made if model.edge}
    if edges:
        places = corpus.places(catalog, ids)
        np.savez(folder / "places.npz", **places._asdict())
        for edge in edges:
            if total * edge * edge * 3 <= pixels.CACHE_BYTES:
                with bar("decode", total) as advance:
                    pixels.fill(places, edge, folder / f"pixels-{edge}.npy", Resources(engine.cores()), advance)
    return reduction
