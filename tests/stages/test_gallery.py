import io

import numpy as np
import pytest
from conftest import add_scoring, write_shard
from PIL import Image

from curate.catalog import Catalog
from curate.errors import CurateError
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.gallery import gallery


def grey(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (9, 9), value).save(file, format="PNG")
    return file.getvalue()


def world(folder, labelled: bool) -> Catalog:
    """Twenty grey squares; the darker, the higher the score."""
    samples = [
        (f"{place:02d}", {"png": grey(10 * place), **({"cls": str(place % 2).encode()} if labelled else {})})
        for place in range(20)
    ]
    catalog = Catalog(folder / "catalog")
    embed(catalog, [str(write_shard(folder / "a.tar", samples))], encoder="pixels")
    add_scoring(catalog, "dark", {place: -float(place) for place in range(20)})
    return catalog


def test_the_easiest_stand_left_and_the_hardest_right(tmp_path):
    path = gallery(world(tmp_path, labelled=True), scoring="dark", count=3, size=16)
    row = np.asarray(Image.open(path).convert("L"))[60].astype(int)
    shades = [
        value for value, before, after in zip(row[1:-1], row, row[2:], strict=False) if value == before == after and value < 250
    ]
    seen = list(dict.fromkeys(shades))
    assert [value for value in seen if value % 20 == 0] == [180, 160, 140, 40, 20, 0]  # class 0: even places, bright is easy


def test_without_labels_the_rows_are_clusters(tmp_path):
    catalog = world(tmp_path, labelled=False)
    with pytest.raises(CurateError, match="no scored sample with a class or a cluster"):
        gallery(catalog, scoring="dark")
    cluster(catalog, k=4, distance="euclidean")  # greys all point the same way
    with Image.open(gallery(catalog, scoring="dark", count=2, size=16, max_rows=3, out=tmp_path / "few.png")) as few:
        assert few.size[1] == 52 + 3 * 22 + 12


def test_a_shard_that_is_gone_is_named(tmp_path):
    catalog = world(tmp_path, labelled=True)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(CurateError, match="put the shard back"):
        gallery(catalog, scoring="dark")


def test_the_same_picture_is_not_drawn_again(tmp_path, caplog):
    catalog = world(tmp_path, labelled=True)
    path = gallery(catalog, scoring="dark", count=2)
    with caplog.at_level("INFO", "curate"):
        assert gallery(catalog, scoring="dark", count=2) == path
        assert "nothing to do" in caplog.text
        caplog.clear()
        gallery(catalog, scoring="dark", count=3)
    assert "drew" in caplog.text
