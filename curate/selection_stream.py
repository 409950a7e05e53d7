"""`curate.stream`: train on a selection from the original shards, without a copy."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import OptionError
from curate.storage import files
from curate.streaming.dataset import SelectionStream, StreamOptions
from curate.streaming.locations import Root
from curate.streaming.selection_index import SelectionIndex, read_selection_index

if TYPE_CHECKING:
    from curate.catalog.catalog import Catalog

_DEFAULT_BUFFER = 1000  # samples, where shuffle is just True


def stream(
    catalog: "Catalog | str | Path",
    selection: str | None = None,
    *,
    shuffle: int = 0,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool = False,
    allow_missing: bool = False,
    max_waste: float = 0.2,
    root: Root = None,
) -> SelectionStream:
    """A data set of a selection's samples, for webdataset, PyTorch, or a plain loop.

    `catalog` is a catalog, with the name of a selection; or the file of `curate export SELECTION
    index.parquet --format index`, which needs no catalog and no database. A sample is that of
    webdataset: `__key__`, `__url__`, members by extension as bytes; `__weight__` where the
    selection has weights. Only the bytes of the selection's samples are read, and of the gaps
    between them the smallest, as long as these are at most `max_waste` of the samples' bytes.

    With `shuffle`, the ranges that are read at once come in an order drawn by `seed` and the
    epoch, and a buffer of so many samples (True: 1,000) mixes them; else the order is that of the
    shards. Every epoch gives each sample once, divided over the loader workers of this rank and
    over the ranks: those of the arguments `rank` and `world_size`, of the environment (RANK,
    WORLD_SIZE), or of torch.distributed. All ranks get as many samples: with `drop_last` up to
    world_size − 1 are left out of an epoch, without it as many come twice.

    A shard that has changed is an error (by its size, the tar's headers, the key and the image's
    checksum of each sample), and so is one that is gone; `allow_missing` leaves its samples out,
    warns with their number at the end of the epoch, and counts them in `num_missing`. `root` is
    where copies of the shards are: a folder, or prefixes and what they stand for, as in
    `curate.kept`.

    Raises OptionError for options that do not fit, CurateError for an unknown selection.
    """
    if shuffle < 0 or max_waste < 0:
        raise OptionError("shuffle and max_waste are not below 0")
    options = StreamOptions(
        shuffle=_DEFAULT_BUFFER if shuffle is True else int(shuffle),
        seed=seed,
        drop_last=drop_last,
        allow_missing=allow_missing,
        max_waste=float(max_waste),
    )
    index = _load_index(catalog, selection)
    return SelectionStream(index, options, rank=rank, world_size=world_size, root=root)


def _load_index(catalog: "Catalog | str | Path", selection: str | None) -> SelectionIndex:
    is_file = isinstance(catalog, str | os.PathLike) and str(catalog).endswith(".parquet")
    if is_file and selection is None:
        return read_selection_index(files.resolve(str(catalog)))
    if is_file:
        raise OptionError(f"'{catalog}' is of one selection already: leave out '{selection}'")
    if selection is None:
        raise OptionError(
            "stream takes a catalog and a selection's name, or the *.parquet of "
            "`curate export SELECTION index.parquet --format index`"
        )
    # Here, because a machine that only trains may have no database.
    from curate.catalog.catalog import Catalog
    from curate.catalog.records import SelectionRecord
    from curate.stages.export.lists import load_selection_index
    from curate.stages.staleness import warn_if_stale

    catalog = Catalog(catalog)
    record = catalog.require(SelectionRecord, selection)
    warn_if_stale(catalog, record)
    return load_selection_index(catalog, record)
