import numpy as np
import pytest

from curate.errors import CurateError
from curate.formats.vectors import iterate_vectors, read_vectors, write_vectors


def test_batches_of_a_file_are_its_rows_in_order(tmp_path):
    path = str(tmp_path / "vectors.parquet")
    ids = np.arange(100, 123)
    write_vectors(path, ids, np.random.default_rng(0).standard_normal((23, 5)).astype(np.float16))
    batches = list(iterate_vectors(path, 10))
    assert [len(batch.sample_ids) for batch in batches] == [10, 10, 3]
    whole = read_vectors(path)
    assert batches[0].vectors.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([b.sample_ids for b in batches]), ids)
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in batches]), whole.vectors)


@pytest.mark.parametrize("content", [None, b"PAR1 and no more"], ids=["missing", "damaged"])
def test_batches_of_a_file_that_cannot_be_read_name_the_remedy(tmp_path, content):
    path = tmp_path / "vectors.parquet"
    if content:
        path.write_bytes(content)
    with pytest.raises(CurateError, match="the same `curate embed` again"):
        next(iterate_vectors(str(path), 10))
