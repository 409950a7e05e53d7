"""Sample ids, and the names of the files that hold one shard's rows.

sample_id = shard_id << 24 | position: up to 16.7 million samples per shard. Ids need no
coordination, never collide, and sort in tar order.
"""

from typing import TYPE_CHECKING, Any

from curate.storage.files import filename, join

if TYPE_CHECKING:
    import numpy as np

_POSITION_BITS = 24
_BATCH_ROWS = 1 << 20


def first_sample_id(shard_id: int) -> int:
    """The id of a shard's first sample; the others count up from it."""
    return shard_id << _POSITION_BITS


def shard_of(sample_ids: Any) -> Any:
    """The shard of a sample, or of each in an array."""
    return sample_ids >> _POSITION_BITS


def are_members(sample_ids: "np.ndarray", member_ids: "np.ndarray") -> "np.ndarray":
    """Which ids are among sorted ones: int64 [n] and [k] -> bool [n].

    In blocks, where `np.isin` would copy and sort both.
    """
    import numpy as np

    is_member = np.zeros(len(sample_ids), bool)
    if not len(member_ids):
        return is_member
    for start in range(0, len(sample_ids), _BATCH_ROWS):
        block = sample_ids[start : start + _BATCH_ROWS]
        index = np.searchsorted(member_ids, block)
        index[index == len(member_ids)] = 0
        is_member[start : start + len(block)] = member_ids[index] == block
    return is_member


def shard_filename(shard_id: int) -> str:
    """The name of a Parquet file with rows of one shard; names sort like shard ids."""
    return f"{shard_id:08d}.parquet"


SHARD_FILES = "[0-9]*.parquet"  # a pattern for all such names


def shard_id_of(location: object) -> int:
    """The shard whose rows a file holds, by the file's name."""
    return int(filename(str(location)).removesuffix(".parquet"))


def captions_folder(embedding_folder: str) -> str:
    """Where the vectors of captions are stored, next to those of the images."""
    return join(embedding_folder, "captions")


def caption_file(embedding_folder: str, shard_id: int) -> str:
    """The file with the vectors of a shard's captions."""
    return join(captions_folder(embedding_folder), shard_filename(shard_id))
