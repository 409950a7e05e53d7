import io
from pathlib import Path

import numpy as np
import pytest
from conftest import add_scoring, write_shard
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.gallery import gallery


def grey(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (9, 9), value).save(file, format="PNG")
    return file.getvalue()


def grey_squares(folder: Path, *, has_labels: bool) -> Catalog:
    """Twenty grey squares; the darker, the higher the score."""
    samples = []
    for position in range(20):
        label = {"cls": str(position % 2).encode()} if has_labels else {}
        samples.append((f"{position:02d}", {"png": grey(10 * position), **label}))
    catalog = Catalog(folder / "catalog")
    embed(catalog, [str(write_shard(folder / "a.tar", samples))], encoder="pixels")
    add_scoring(catalog, "dark", {position: -float(position) for position in range(20)})
    return catalog


def test_the_easiest_stand_left_and_the_hardest_right(tmp_path):
    catalog = grey_squares(tmp_path, has_labels=True)
    path = gallery(catalog, scoring="dark", count=3, size=16)
    row = np.asarray(Image.open(path).convert("L"))[60].astype(int)
    flat_values = [
        value
        for value, left, right in zip(row[1:-1], row, row[2:], strict=False)
        if value == left == right and value < 250
    ]
    shades = [value for value in dict.fromkeys(flat_values) if value % 20 == 0]
    # Class 0 has the even positions; bright is easy.
    assert shades == [180, 160, 140, 40, 20, 0]


def test_without_labels_the_rows_are_clusters(tmp_path):
    catalog = grey_squares(tmp_path, has_labels=False)
    with pytest.raises(CurateError, match="no sample with a score and a cluster"):
        gallery(catalog, scoring="dark")
    cluster(catalog, k=4, distance="euclidean")  # greys all point the same way
    path = gallery(
        catalog, scoring="dark", count=2, size=16, max_rows=3, out=tmp_path / "three-rows.png"
    )
    with Image.open(path) as picture:
        assert picture.size[1] == 52 + 3 * 22 + 12


def test_a_shard_that_is_gone_is_named(tmp_path):
    catalog = grey_squares(tmp_path, has_labels=True)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(CurateError, match="put the shard back"):
        gallery(catalog, scoring="dark")


def test_the_same_picture_is_not_drawn_again(tmp_path, caplog):
    catalog = grey_squares(tmp_path, has_labels=True)
    path = gallery(catalog, scoring="dark", count=2)
    with caplog.at_level("INFO", "curate"):
        assert gallery(catalog, scoring="dark", count=2) == path
        assert "nothing to do" in caplog.text
        caplog.clear()
        gallery(catalog, scoring="dark", count=3)
    assert "drew" in caplog.text
