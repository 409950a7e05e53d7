"""`curate view`: the corpus as a map to walk through, drawn by embedding-atlas in the browser."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord, SelectionRecord
from curate.errors import CurateError, OptionError
from curate.options import EmbeddingName, Option, Seed, verb
from curate.progress import announce, log
from curate.stages.view import table
from curate.stages.view.positions import find_positions
from curate.stages.view.table import Table, write_table
from curate.storage.atomic import temporary_path

_PROGRAM = "embedding-atlas"
_HOST = "127.0.0.1"
_START_TIMEOUT = 300  # seconds, until the atlas answers
_INSTALL = "pip install 'foundation-curate[atlas]'"


def _check_out(path: object) -> None:
    """OptionError for a name with an ending that is neither a folder's nor .zip."""
    suffix = Path(str(path)).suffix.lower()
    if suffix in (".html", ".parquet", ".tar", ".gz"):
        raise OptionError(f"--out {Path(str(path)).name}: give a folder, or a name in .zip")


def _check_together(arguments: Mapping[str, Any]) -> None:
    if arguments["out"] is None:
        return
    path = Path(arguments["out"]).expanduser()
    if path.is_dir() and any(path.iterdir()):
        raise OptionError(f"'{path}' is not empty: give another folder with --out")


@verb(check=_check_together)
def view(
    catalog: Catalog | str | Path,
    *,
    selection: Annotated[
        list[str] | str | None,
        Option(
            "Selection that gets a column of kept and dropped; repeatable.",
            default="the newest one",
            metavar="NAME",
        ),
    ] = None,
    embedding: EmbeddingName = None,
    sample: Annotated[int, Option("Samples to show at most.", minimum=1)] = 100_000,
    size: Annotated[int, Option("Edge of an image in pixels.", minimum=16, maximum=512)] = 96,
    out: Annotated[
        str | Path | None,
        Option(
            "Write the atlas as a folder, or a .zip, for any web server, and start none.",
            metavar="FOLDER|FILE.zip",
            short="-o",
            check=_check_out,
        ),
    ] = None,
    port: Annotated[int, Option("Port on 127.0.0.1.", minimum=1024, maximum=65_535)] = 5055,
    no_open: Annotated[bool, Option("Do not open a browser.")] = False,
    seed: Seed = 0,
) -> str:
    """Write view/samples.parquet in the catalog, and show it in embedding-atlas until Ctrl-C.

    The table has a row a sample: a thumbnail, its place on the map (UMAP of the vectors where it is
    installed, else two principal components), its nearest neighbours, and the columns of
    `sample_scores`, under the same names, so that a predicate from the atlas works as the --where
    of `curate select`. Returns the path of the table, or with `out` of what was written. Raises
    CurateError without embedding-atlas, after the table was written.
    """
    catalog = Catalog(catalog)
    selections = _choose_selections(catalog, selection)
    record = catalog.require(EmbeddingRecord, embedding)
    announce("view: reading vectors")
    path = catalog.path / "view" / "samples.parquet"
    path.parent.mkdir(exist_ok=True)
    positions = find_positions(catalog, record.embedding, sample, seed)
    written = write_table(catalog, path, positions, selections, size)
    log.info(
        "%s samples, %s bytes: %s", f"{written.num_samples:,}", f"{path.stat().st_size:,}", path
    )
    # By its name, in its folder: what is given is in a column of every atlas that is handed on.
    command = [_find_program(path), path.name, *_describe_columns(written)]
    environment = _make_environment(path.parent)
    if out is not None:
        return str(_export(command, Path(out).expanduser().absolute(), environment, path.parent))
    _serve(command, port, environment, path.parent, opens_browser=not no_open)
    return str(path)


def _choose_selections(catalog: Catalog, selection: list[str] | str | None) -> list[str]:
    """The selections to show: those named, else the newest, or none."""
    if selection is None:
        return catalog.list_names(SelectionRecord)[-1:]
    names = [selection] if isinstance(selection, str) else selection
    return [catalog.require(SelectionRecord, name).selection for name in dict.fromkeys(names)]


def _find_program(path: Path) -> str:
    """embedding-atlas of this environment, or on the PATH. Raises CurateError."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which(_PROGRAM, path=folders)
    if program is None:
        raise CurateError(
            f"embedding-atlas is not installed: {_INSTALL}; its table is there: {path}"
        )
    return os.path.abspath(program)


def _describe_columns(written: Table) -> list[str]:
    """The options of embedding-atlas that say what the columns are."""
    options = ["--image", table.THUMBNAIL, "--x", table.X, "--y", table.Y]
    # A column for the importance of images: without one, embedding-atlas computes PageRank.
    options += ["--neighbors", table.NEIGHBOURS, "--pagerank", table.TYPICAL]
    return [*options, "--text", "caption"] if written.has_captions else options


def _make_environment(folder: Path) -> dict[str, str]:
    """Without the model hub, and with what it caches in the catalog instead of the user's home."""
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(folder.absolute() / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _export(command: list[str], out: Path, environment: dict[str, str], folder: Path) -> Path:
    """Write the atlas as a folder or a zip, complete or not at all."""
    announce("view: exporting the atlas")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(out)
    log_path = folder / "log.txt"
    try:
        with log_path.open("wb") as log_file:
            arguments = [*command, "--export-application", str(temporary)]
            run = subprocess.run(  # noqa: S603 - no shell, our own arguments
                arguments,
                cwd=folder,
                env=environment,
                stdout=log_file,
                stderr=subprocess.STDOUT,
            )
        if run.returncode or not temporary.exists():
            raise _failure(log_path)
        if out.is_dir():
            out.rmdir()  # it is empty
        temporary.rename(out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
    if out.suffix.lower() == ".zip":
        log.info("wrote %s, %s bytes: unpack it where a web server is", out, out.stat().st_size)
    else:
        log.info("wrote %s: look at it with `python3 -m http.server -d %s`", out, out)
    return out


def _serve(
    command: list[str], port: int, environment: dict[str, str], folder: Path, *, opens_browser: bool
) -> None:
    """Run the server until it ends or is interrupted."""
    port = _free_port(port)
    url = f"http://{_HOST}:{port}"
    log_path = folder / "log.txt"
    announce("view: starting embedding-atlas")
    options = ["--duckdb", "server", "--host", _HOST, "--port", str(port), "--no-auto-port"]
    with log_path.open("wb") as log_file:
        server = subprocess.Popen(  # noqa: S603 - no shell, our own arguments
            [*command, *options],
            cwd=folder,
            env=environment,
            stdout=log_file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_open(server, port, log_path)
        log.info("the atlas is at %s (Ctrl-C ends it)", url)
        announce("view: serving")
        if opens_browser:
            with contextlib.suppress(webbrowser.Error):
                webbrowser.open(url)
        if server.wait():
            raise _failure(log_path)
    except KeyboardInterrupt:
        log.info("the atlas has ended; a predicate picked there goes to `curate select --where`")
    finally:
        server.terminate()
        server.wait()


def _free_port(port: int) -> int:
    """This port, or the next one that nobody listens on. Raises CurateError."""
    for candidate in range(port, min(port + 100, 65_536)):
        with socket.socket() as probe:
            try:
                probe.bind((_HOST, candidate))
            except OSError:
                continue
            return candidate
    raise CurateError(f"no port from {port} on is free: give another with --port")


def _wait_until_open(server: "subprocess.Popen[bytes]", port: int, log_path: Path) -> None:
    end = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < end:
        if server.poll() is not None:
            raise _failure(log_path)
        with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
            return
        time.sleep(0.1)
    raise _failure(log_path)


def _failure(log_path: Path) -> CurateError:
    lines = [line for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else "it said nothing"
    return CurateError(f"embedding-atlas has failed: {reason} (all it said is in {log_path})")
