"""What a person at a terminal sees: what is being done, bars, messages, tables that fit."""

import io
import re
import sys
import time

import pytest
from conftest import make_catalog

import curate
from curate import progress
from curate.cli import app
from curate.cli.listing import print_list
from curate.cli.output import print_table


def run_app(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command line."""
    with pytest.raises(SystemExit) as end:
        app.main(list(words))
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal on stderr, with the messages and bars of a command line.

    No fixture: pytest has its own stderr in a test's call.
    """
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(progress.log, "handlers", [])
    monkeypatch.setattr(progress.log, "level", progress.log.level)
    monkeypatch.setattr(progress.log, "propagate", True)
    monkeypatch.setattr(progress, "_messages_enabled", False)
    monkeypatch.setattr(progress, "_bars_enabled", False)
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_INTERVAL", 0.01)
    progress.configure_output(messages=True, bars=True)
    return file


def wait_for(file: Terminal, text: str) -> None:
    end = time.monotonic() + 60
    while text not in file.getvalue():
        assert time.monotonic() < end, file.getvalue()
        time.sleep(0.005)


def test_a_terminal_says_what_is_waited_for_until_a_message_takes_its_place(monkeypatch):
    terminal = make_terminal(monkeypatch)
    with progress.waiting("embed: starting"):
        wait_for(terminal, "embed: starting …")
        progress.announce("embed: loading the encoder")
        wait_for(terminal, "embed: loading the encoder …")
        progress.log.info("embedded 5 samples")
    lines = terminal.getvalue().split("\n")
    assert lines[0].endswith("\r\x1b[2Kembedded 5 samples"), "the line is cleared first"
    assert lines[-1].endswith("\r\x1b[2K") or lines[-1] == "", "and nothing stays"


def test_messages_go_above_a_bar_and_a_second_bar_below_the_first(monkeypatch):
    terminal = make_terminal(monkeypatch)
    with (
        progress.waiting("score: starting"),
        progress.progress_bar("score", 10) as advance,
        progress.progress_bar("inner", 5) as advance_inner,
    ):
        advance(5, 5)
        advance_inner(1, 1)
        progress.log.warning("a shard is gone")
        time.sleep(0.05)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert any(line.strip() == "a shard is gone" for line in re.split(r"[\r\n]", text))
    assert "starting …" not in text.split("a shard is gone")[1], "a bar has the last line"


def test_a_table_takes_the_place_of_what_is_waited_for(monkeypatch):
    terminal = make_terminal(monkeypatch)
    with progress.waiting("list: starting"):
        wait_for(terminal, "list: starting …")
        print_table(["name"], [("one",)], terminal)
        time.sleep(0.05)
    text = terminal.getvalue()
    assert text.index("\r\x1b[2K", text.rindex("starting")) < text.index("name")
    assert "starting" not in text[text.index("name") :]


def test_narrow_columns_stay_whole_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    terminal = make_terminal(monkeypatch)
    words = "many words " * 9
    print_table(["name", "one", "two"], [("efficientnet_lite0", words, words)], terminal)
    assert "efficientnet_lite0" in terminal.getvalue()


def test_a_pipe_gets_one_line_for_what_is_loaded(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(progress, "_bars_enabled", False)
    monkeypatch.setattr(progress, "_messages_enabled", True)
    with progress.waiting("embed: starting"):
        progress.announce("embed: loading \x1b[31mthe encoder")
    assert file.getvalue() == "embed: loading \\x1b[31mthe encoder …\n"


def test_an_option_that_counts_once_is_refused_when_it_is_given_twice(capsys):
    status, _, errors = run_app(capsys, "cluster", "--k", "3", "--k", "4")
    assert status == 2
    assert errors == "curate: --k is given 2 times, and counts once: give one\n"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--out", "x.txt"], "--out x.txt: give a name that ends in .csv, .json, .parquet, or add"),
        (["--out", "x.csv", "--format", "json"], "--out x.csv and --format json contradict"),
    ],
)
def test_a_query_is_not_written_under_a_wrong_ending(catalog, capsys, options, error):
    words = ["query", "select 1", "-c", str(catalog.path)]
    status, _, errors = run_app(capsys, *words, *options)
    assert status == 2
    assert error in errors


def test_a_query_says_what_it_wrote(catalog, tmp_path, capsys):
    for ending in ("csv", "json", "parquet"):
        path = tmp_path / f"answer.{ending}"
        sql = "select unnest([1, 2, 3]) as number"
        status, out, errors = run_app(
            capsys, "query", sql, "-c", str(catalog.path), "--out", str(path)
        )
        assert (status, out) == (0, "")
        assert f"wrote 3 rows, {path.stat().st_size:,} bytes, to {path}" in errors


def test_the_last_line_is_the_command_that_follows(tmp_path, capsys):
    catalog = make_catalog(tmp_path)
    status, out, errors = run_app(capsys, "cluster", "--k", "2", "-c", str(catalog.path))
    assert (status, out) == (0, "kmeans\n")
    assert errors.splitlines()[-1] == f"next: curate score ssl_prototypes -c {catalog.path}"


def test_metrics_are_listed_in_words_with_what_they_need_and_whether_they_can_run(tmp_path, capsys):
    catalog = make_catalog(tmp_path)

    def list_states() -> dict[str, str]:
        print_list(catalog.path, "metrics")
        lines = capsys.readouterr().out.splitlines()
        start = lines[0].index("now")
        return {line.split()[0]: line[start : start + 4].strip() for line in lines[2:]}

    before = list_states()
    assert (before["random"], before["ssl_prototypes"], before["el2n"]) == ("yes", "no", "no")
    curate.cluster(catalog, k=2)
    assert list_states()["ssl_prototypes"] == "yes"
    print_list(catalog.path, "metrics")
    assert "->" not in capsys.readouterr().out


def test_a_table_that_is_too_wide_for_the_terminal_is_printed_row_by_row(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    file = Terminal()
    columns = [f"column_{number}" for number in range(8)]
    print_table(columns, [tuple(range(8)), tuple(range(8, 16))], file)
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert "column_7  7\n" in text
    assert "column_0  8\n" in text
    assert max(map(len, text.splitlines())) <= 40
