"""Columns of samples: fields of .json members, and imported tables."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import load_scores, members, png, rows, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError, OptionError
from curate.formats.json_fields import (
    MAX_FIELDS,
    find_field,
    flatten_fields,
    to_text,
    type_of,
    widen,
)
from curate.stages.embed import columns as embed_columns
from curate.stages.embed import commit
from curate.stages.embed.stage import embed
from curate.stages.gallery import gallery


def write_json_shard(path: Path, fields: list[object]) -> str:
    """A shard of a sample for each object; its position is its key. Text is JSON as it is."""
    samples = []
    for position, value in enumerate(fields):
        text = value if isinstance(value, str) else json.dumps(value)
        sample = {"png": png(position), "json": text.encode()}
        samples.append((f"{path.stem}{position}", sample))
    return str(write_shard(path, samples))


def columns_of(catalog: Catalog) -> dict[str, tuple[str, list[object]]]:
    """The type and the values of each column, in the order of the samples."""
    columns = {}
    for name, kind in rows(catalog, "select column_name, type from column_sources order by rowid"):
        quoted = quote_identifier(name)
        values = rows(catalog, f"select {quoted} from sample_scores order by sample_id")
        columns[name] = (kind, [value for (value,) in values])
    return columns


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory) -> Path:
    """The case `downloaded.tar`: what a downloader leaves, and a caption without its image."""
    folder = tmp_path_factory.mktemp("downloaded")
    with tarfile.open(folder / "downloaded.tar", "w") as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for position in range(6):
            fields = {
                "caption": "a cat",
                "status": "success",
                "similarity": 0.2 + position / 10,
                "exif": {"make": "x"},
                "tags": {"class": {"id": position % 2}},
            }
            add(f"{position:09d}.jpg", png(position))
            add(f"{position:09d}.json", json.dumps(fields).encode())
            add(f"{position:09d}.txt", b"a cat")
        add("000000009.json", b'{"status": "failed_to_download"}')
        add("000000009.txt", b"lost")
    embed(
        folder / "catalog",
        str(folder / "downloaded.tar"),
        encoder="pixels",
        columns="all",
        label="json:tags.class.id",
        workers=1,
    )
    return folder


@pytest.fixture
def catalog(downloaded, tmp_path) -> Catalog:
    """A copy of the catalog of `downloaded.tar`."""
    shutil.copytree(downloaded / "catalog", tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


def test_fields_of_json_are_typed_columns_and_labels_go_by_path(catalog):
    columns = columns_of(catalog)
    assert {name: kind for name, (kind, _) in columns.items()} == {
        "json.caption": "text",
        "status": "text",
        "similarity": "double",
        "exif.make": "text",
        "tags.class.id": "int",
    }
    assert columns["tags.class.id"][1] == [0, 1, 0, 1, 0, 1]
    assert columns["similarity"][1] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert rows(catalog, "select distinct label, caption from samples order by 1") == [
        ("0", "a cat"),
        ("1", "a cat"),
    ]
    assert curate.verify(catalog) == []


def test_columns_narrow_a_selection_and_a_query(catalog):
    name = curate.select(
        catalog,
        keep=1.0,
        strategy="random",
        where='similarity > 0.45 and "tags.class.id" = 1 and "exif.make" = \'x\'',
    )
    assert members(catalog, name) == [3, 5]
    table = curate.query(catalog, "select status, count(*) as n from sample_scores group by all")
    assert table.to_pylist() == [{"status": "success", "n": 6}]


def test_a_metric_of_ones_own_takes_columns_by_their_names(catalog, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "def mine(similarity, tags_class_id, status, weight=2.0):\n"
        "    assert similarity.dtype == np.float64 and status[0] == 'success'\n"
        "    return weight * similarity + tags_class_id\n"
        "def lacking(similarity, beauty):\n"
        "    return similarity\n"
    )
    (scoring,) = curate.score(catalog, metric_file=f"{file}:mine")
    assert load_scores(catalog, scoring) == pytest.approx([0.4, 1.6, 0.8, 2.0, 1.2, 2.4])
    curate.score(catalog, metric_file=f"{file}:mine", options={"weight": "0"}, name="id")
    assert load_scores(catalog, "id") == [0, 1, 0, 1, 0, 1]
    with pytest.raises(OptionError, match=r"asks for 'beauty', .* no column .*similarity"):
        curate.score(catalog, metric_file=f"{file}:lacking")


def test_a_scoring_of_columns_is_made_again_when_they_are_imported_again(catalog, tmp_path):
    table, file = tmp_path / "more.csv", tmp_path / "mine.py"
    file.write_text("def mine(beauty):\n    return beauty\n")
    table.write_text("key,beauty\n000000000,1\n000000001,5\n")
    curate.import_table(catalog, table, key="key")
    curate.score(catalog, metric_file=f"{file}:mine")
    assert load_scores(catalog, "mine") == [1, 5, None, None, None, None]
    table.write_text("key,beauty\n000000000,2\n000000001,5\n")
    curate.import_table(catalog, table, key="key")
    stale = rows(catalog, "select name from lineage where out_of_date")
    assert stale == [("mine",)]
    curate.score(catalog, metric_file=f"{file}:mine")
    assert load_scores(catalog, "mine") == [2, 5, None, None, None, None]


def test_columns_are_added_to_shards_that_are_embedded_already(downloaded, tmp_path, caplog):
    catalog, url = Catalog(tmp_path / "later"), str(downloaded / "downloaded.tar")
    embed(catalog, url, encoder="pixels", workers=1)
    assert columns_of(catalog) == {}
    embed(catalog, url, encoder="pixels", workers=1, columns="similarity,tags.class.id,nothing")
    assert list(columns_of(catalog)) == ["similarity", "tags.class.id"]
    assert columns_of(catalog)["tags.class.id"] == ("int", [0, 1, 0, 1, 0, 1])
    assert "no sample has the fields nothing" in caplog.text
    caplog.clear()
    embed(catalog, url, encoder="pixels", workers=1)
    assert "read the .json members" not in caplog.text
    embed(catalog, url, encoder="pixels", workers=1, columns=["status"])
    assert list(columns_of(catalog)) == ["similarity", "tags.class.id", "status"]
    assert columns_of(catalog)["status"][1] == ["success"] * 6
    assert curate.verify(catalog) == []


def test_a_column_of_two_types_across_shards_is_widened_and_said(tmp_path, caplog):
    catalog = Catalog(tmp_path / "catalog")
    shards = [
        write_json_shard(tmp_path / "a.tar", [{"n": 1, "mix": 3, "yes": True}, {"n": 2}]),
        write_json_shard(tmp_path / "b.tar", [{"n": 2.5, "mix": "three"}, {"l": [1, {"x": None}]}]),
    ]
    embed(catalog, shards[0], encoder="pixels", columns="all", workers=1)
    assert columns_of(catalog)["mix"] == ("int", [3, None])
    embed(catalog, shards[1], encoder="pixels", workers=1)  # keeps columns as before
    assert columns_of(catalog) == {
        "n": ("double", [1.0, 2.0, 2.5, None]),
        "mix": ("text", ["3", None, "three", None]),
        "yes": ("bool", [True, None, None, None]),
        "l": ("json", [None, None, None, '[1, {"x": null}]']),
    }
    assert "the column 'mix' has values of several types: it is text from now on" in caplog.text


def test_a_number_has_one_spelling_in_a_column_of_texts_in_any_order(tmp_path):
    values = [[{"x": 1}], [{"x": 1.0}, {"x": 2.5}], [{"x": "a"}]]
    for order in ((0, 1, 2), (2, 1, 0)):
        catalog = Catalog(tmp_path / f"catalog{order[0]}")
        for index in order:
            shard = write_json_shard(tmp_path / f"{order[0]}{index}.tar", values[index])
            embed(catalog, shard, encoder="pixels", columns="x", workers=1)
        texts = sorted(columns_of(catalog)["x"][1])
        assert texts == ["1", "1", "2.5", "a"]


def test_too_many_fields_are_refused_before_anything_is_written(tmp_path):
    halves = [{f"key{i}": i for i in range(start, start + MAX_FIELDS)} for start in (0, 1)]
    shard = write_json_shard(tmp_path / "a.tar", [halves[0], halves[1]])
    with pytest.raises(CurateError, match=r"more than 1,000 different fields.*--columns 'key0,key"):
        embed(tmp_path / "catalog", shard, encoder="pixels", columns="all")
    assert not (tmp_path / "catalog").exists()
    embed(tmp_path / "catalog", shard, encoder="pixels", columns="key0", workers=1)
    assert columns_of(Catalog(tmp_path / "catalog"))["key0"][1] == [0, None]


def test_too_many_fields_that_show_late_leave_whole_shards_only(tmp_path, monkeypatch):
    monkeypatch.setattr(embed_columns, "MAX_FIELDS", 3)
    shards = [
        write_json_shard(tmp_path / "a.tar", [{"a": 1, "b": 2}]),
        write_json_shard(tmp_path / "b.tar", [{"c": 1, "d": 2}]),
    ]
    catalog = Catalog(tmp_path / "catalog")
    for _ in range(2):
        with pytest.raises(CurateError, match="more than 3 different fields"):
            embed(catalog, shards, encoder="pixels", columns="all", workers=1)
        assert curate.verify(catalog) == []
    embed(catalog, shards, encoder="pixels", columns="b,d", workers=1)
    columns = columns_of(catalog)
    assert columns["b"] == ("int", [2, None])
    assert columns["d"] == ("int", [None, 2])
    assert "c" not in columns
    assert list(Path(catalog.embedding_folder("pixels")).glob("pending*")) == []


def test_a_kill_before_the_commit_loses_no_column(tmp_path, monkeypatch):
    shard = write_json_shard(tmp_path / "a.tar", [{"a": 1}, {"a": 2}])
    catalog = Catalog(tmp_path / "catalog")
    with monkeypatch.context() as patch:
        patch.setattr(commit, "commit_fields", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embed(catalog, shard, encoder="pixels", columns="all", workers=1)
    assert rows(catalog, "select count(*) from samples") == [(0,)]
    embed(catalog, shard, encoder="pixels", columns="all", workers=1)
    assert columns_of(catalog) == {"a": ("int", [1, 2])}
    assert rows(catalog, "select count(*) from samples") == [(2,)]


def test_odd_names_and_values_of_fields_are_kept(tmp_path, caplog):
    fields: list[object] = [
        {"": 1, 'a"b': 2, "Width": 3, "width": 4, "x\n": 5, "url": "u", "nan": float("nan")},
        '{"big": 123456789012345678901, "list": [NaN, 1], "half": "\\ud800"}',
        "[1, 2]",
        "{not json",
    ]
    catalog = Catalog(tmp_path / "catalog")
    embed(
        catalog,
        write_json_shard(tmp_path / "a.tar", fields),
        encoder="pixels",
        columns="all",
        workers=1,
    )
    columns = columns_of(catalog)
    assert columns["_"][1][0] == 1
    assert columns['a"b'][1][0] == 2
    assert columns["json.Width"][1][0] == 3
    assert columns["json.width_2"][1][0] == 4
    assert columns["x_"][1][0] == 5
    assert columns["json.url"][1][0] == "u"
    assert columns["big"] == ("text", [None, "123456789012345678901", None, None])
    assert columns["list"][1][1] == "[null, 1]"
    assert "2 .json members are no JSON objects" in caplog.text
    assert rows(catalog, "select count(*) from samples") == [(4,)]


def test_paths_and_types_of_fields():
    fields = {"a": {"b": {"c": 1}, "d.e": 2}, "a.b": 3, "f": [], "g": {}}
    assert find_field(fields, "a.b.c") == 1
    assert find_field(fields, "a.b") == 3
    assert find_field(fields, "a.d.e") == 2
    assert find_field(fields, "a.x") is None
    assert flatten_fields(fields) == {"a.b.c": 1, "a.d.e": 2, "a.b": 3, "f": [], "g": {}}
    assert [type_of(value) for value in (True, 1, 1.0, "", [], 1 << 70)] == [
        "bool",
        "int",
        "double",
        "text",
        "json",
        "text",
    ]
    assert widen("int", "double") == "double"
    assert widen("bool", "int") == widen("json", "text") == "text"
    assert [to_text(value) for value in (1.0, 1, True, 0.5)] == ["1", "1", "true", "0.5"]


def test_a_table_becomes_columns_and_a_scoring(catalog, tmp_path):
    table = tmp_path / "laion scores.csv"
    table.write_text(
        "name,similarity,nsfw,license\n"
        + "".join(f"{i:09d},{i / 10},{str(i > 3).lower()},CC\n" for i in range(6))
    )
    name = curate.import_table(catalog, table, key="name", as_scoring={"clip": "similarity"})
    assert name == "laion_scores"
    columns = columns_of(catalog)
    assert columns["nsfw"] == ("bool", [False] * 4 + [True] * 2)
    assert columns["license"] == ("text", ["CC"] * 6)
    assert load_scores(catalog, "clip") == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    selection = curate.select(catalog, keep=0.5, scoring="clip", where="not nsfw", balance=0)
    assert members(catalog, selection) == [2, 3]
    assert curate.verify(catalog) == []
    # Again with a column whose name is taken.
    curate.import_table(catalog, table, key="name", name="again")
    assert columns_of(catalog)["again.similarity"][1] == pytest.approx([i / 10 for i in range(6)])


def test_the_answer_of_a_query_comes_back_by_sample_id(catalog, tmp_path):
    import pyarrow.parquet as pq

    answer = curate.query(
        catalog, "select sample_id, [similarity, 1.0] as pair, 'x'::blob as raw from sample_scores"
    )
    pq.write_table(answer, tmp_path / "answer.parquet")
    curate.import_table(catalog, tmp_path / "answer.parquet", key="sample_id")
    kind, values = columns_of(catalog)["pair"]
    assert kind == "json"
    assert json.loads(str(values[1])) == pytest.approx([0.3, 1.0])


def test_keys_that_do_not_fit_are_counted_listed_and_refused_by_strict(catalog, tmp_path, caplog):
    table = tmp_path / "t.csv"
    table.write_text("key,x\n000000000,1\n000000001,2\n000000001,3\nnobody,4\n")
    with pytest.raises(CurateError, match=r"no sample has this key, such as nobody.*--strict"):
        curate.import_table(catalog, table, key="key", strict=True)
    assert "x" not in columns_of(catalog)
    assert not (catalog.path / "imports").exists()
    curate.import_table(catalog, table, key="key")
    assert columns_of(catalog)["x"][1] == [1] + [None] * 5
    assert "1 row: no sample has this key, such as nobody" in caplog.text
    assert "2 rows: several rows have this key, such as 000000001" in caplog.text
    listing = (catalog.path / "imports" / "t.csv").read_text().splitlines()
    assert len(listing) == 4
    table.write_text("key,x\nnobody,4\n")
    with pytest.raises(CurateError, match=r"keys such as nobody, the samples 000000000"):
        curate.import_table(catalog, table, key="key")
    assert columns_of(catalog)["x"][1] == [1] + [None] * 5


def test_keys_that_come_again_in_other_shards_need_the_shard(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", [("k", {"png": png(number)})])
    embed(catalog, str(tmp_path / "*.tar"), encoder="pixels", workers=1)
    table = tmp_path / "t.csv"
    table.write_text("key,shard,x\nk,0.tar,1\nk,1,2\n")
    with pytest.raises(CurateError, match="--shard where keys come again"):
        curate.import_table(catalog, table, key="key")
    curate.import_table(catalog, table, key="key", shard="shard")
    assert columns_of(catalog)["x"][1] == [1, 2]
    table.write_text("key,y\nk,7\n")
    curate.import_table(catalog, table, key="key", shard=str(tmp_path / "1.tar"), name="one")
    assert columns_of(catalog)["y"][1] == [None, 7]


def test_the_same_import_does_nothing_and_another_replaces_it(catalog, tmp_path, caplog):
    caplog.set_level("INFO", "curate")
    table = tmp_path / "t.csv"
    table.write_text("key,x,y\n000000000,1,2\n")
    curate.import_table(catalog, table, key="key")
    caplog.clear()
    curate.import_table(catalog, table, key="key")
    assert "nothing to do" in caplog.text
    table.write_text("key,x\n000000000,text\n")
    curate.import_table(catalog, table, key="key")
    assert columns_of(catalog)["x"] == ("text", ["text"] + [None] * 5)
    assert "y" not in columns_of(catalog)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "nokey"}, "--key nokey: the table has no such column; it has key, x, word"),
        ({"key": "key", "columns": "z"}, "the table has no column 'z'"),
        ({"key": "key", "as_scoring": {"s": "word"}}, "'word' holds no numbers"),
        ({"key": "key", "as_scoring": {"width": "x"}}, "a column of every sample"),
        ({"key": "key", "shard": "nowhere"}, "no column of the table, and no shard"),
        ({"key": "key", "name": "json"}, "json"),
    ],
)
def test_a_wrong_option_of_an_import_is_said(catalog, tmp_path, options, message):
    (tmp_path / "t.csv").write_text("key,x,word\n000000000,1,w\n")
    before = columns_of(catalog)
    with pytest.raises(CurateError, match=message):
        curate.import_table(catalog, tmp_path / "t.csv", **options)
    assert columns_of(catalog) == before


def test_a_name_of_a_column_is_taken_for_scorings(catalog):
    with pytest.raises(CurateError, match="'similarity' is the name of a column from json"):
        curate.score(catalog, ["random"], name="similarity")


def test_the_report_filters_by_columns_and_the_gallery_ranks_by_them(catalog, tmp_path):
    page = Path(curate.report(catalog, tmp_path / "report.html")).read_text()
    assert '<optgroup label="columns"><option>similarity</option>' in page
    assert "<option>exif.make</option>" in page
    assert '"tags.class.id":1' in page.replace(" ", "")
    assert Path(gallery(catalog, scoring="similarity", by="exif.make", count=2)).exists()
    with pytest.raises(CurateError, match="the catalog has no scoring yet"):
        gallery(catalog, scoring="status")
