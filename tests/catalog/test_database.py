"""One DuckDB in a process: what is open, what is interrupted, and what another catalog is."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from curate.catalog import database
from curate.catalog.catalog import Catalog


def is_locked(path: Path) -> bool:
    """Whether another process is kept from writing to the file."""
    program = "import sys, duckdb; duckdb.connect(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    return "Conflicting lock" in run.stderr


@pytest.mark.parametrize("after_attaching", [True, False])
def test_an_interrupt_while_the_file_is_opened_leaves_nothing_open(
    catalog, monkeypatch, after_attaching
):
    """Python raises Ctrl-C when DuckDB's call has returned, or DuckDB was interrupted itself."""
    attach = database.attach

    def attach_and_interrupt(*arguments: object) -> None:
        if after_attaching:
            attach(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(database, "attach", attach_and_interrupt)
        with pytest.raises(KeyboardInterrupt), catalog.reading():
            pass
    assert not is_locked(catalog.database_path)
    with catalog.writing(timeout=1) as connection:
        connection.execute("update meta set next_shard_id = 7")
    with catalog.reading() as connection:
        assert connection.execute("select next_shard_id from meta").fetchall() == [(7,)]


def test_an_interrupt_while_a_connection_is_closed_gives_the_file_up(catalog):
    file = database.open_database(catalog.database_path)
    connection = file.connect(read_only=True, timeout=1)

    class Interrupted:
        def close(self) -> None:
            connection.close()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file.close(Interrupted())
    assert not is_locked(catalog.database_path)
    with catalog.writing(timeout=1):
        pass


def test_a_catalog_that_is_being_read_keeps_its_lock_while_another_is_used(catalog, tmp_path):
    other = Catalog(tmp_path / "other").create()
    with catalog.reading() as connection:
        with other.reading(), catalog.reading():
            pass
        assert is_locked(catalog.database_path)
        assert connection.execute("select count(*) from meta").fetchall() == [(1,)]
    assert not is_locked(catalog.database_path)


def test_the_file_is_open_only_while_somebody_reads_or_commits(catalog):
    with catalog.reading(), catalog.reading():
        assert is_locked(catalog.database_path)
    assert not is_locked(catalog.database_path)
    with duckdb.connect(str(catalog.database_path)) as connection:  # by a client in this process
        connection.execute("update meta set next_shard_id = 3")
    with catalog.reading() as connection:
        assert connection.execute("select next_shard_id from meta").fetchall() == [(3,)]
