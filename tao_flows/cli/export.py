"""``tao-flows export``: the ledger's tasks as one flat table, for other tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Annotated, Any, cast

import typer

from tao_flows.cli._console import fail, print_json, stderr
from tao_flows.cli.report import nothing_yet, reconciled, since_ns
from tao_flows.config import load_config
from tao_flows.errors import InputError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.report.export import EXPORT_VERSION, dictionary_json, export_rows, write_csv, write_jsonl, write_parquet
from tao_flows.report.text import count

Write = Callable[[Iterable[dict[str, Any]], IO[Any]], int]
_WRITERS: dict[str, Write] = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


def export_command(
    *,
    form: Annotated[str | None, typer.Option("--format", metavar="parquet|csv|jsonl", help="What to write.")] = None,
    out: Annotated[str | None, typer.Option(metavar="PATH|-", help="The file; - is standard output.")] = None,
    since: Annotated[str | None, typer.Option(metavar="DURATION", help="Only runs of the last 7d, 12h, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was written as JSON on standard output.")] = False,
    dictionary: Annotated[bool, typer.Option("--dictionary", help="Write what the columns mean, as JSON.")] = False,
) -> None:
    """Write one row a task segment, with a versioned dictionary of columns."""
    if dictionary:
        print_json(dictionary_json())
        return
    try:
        _export(form, out, since, as_json=as_json)
    except TaoError as error:
        fail(error)


def _export(form: str | None, out: str | None, since: str | None, *, as_json: bool) -> None:
    if form not in _WRITERS:
        said = "there is no --format" if form is None else f"--format {form!r} is not known"
        raise InputError("BAD_USAGE", said, "give --format parquet, csv or jsonl")
    if not out:
        raise InputError("BAD_USAGE", "there is no --out", "give --out PATH, or --out - for standard output")
    if as_json and out == "-":
        raise InputError("BAD_USAGE", "--json and the rows cannot share standard output", "give --out a path")
    since_wall_ns = 0 if since is None else since_ns(since)
    ledger = reconciled(open_ledger(load_config().config.ledger))
    try:
        if not ledger.runs():
            raise nothing_yet(ledger)
        with _opened(out, binary=form == "parquet") as file:
            number = _WRITERS[form](export_rows(ledger, since_wall_ns), file)
    except OSError as error:
        raise InputError(
            "UNWRITABLE", f"{out}: {error.strerror or error}", "give --out a file that can be written"
        ) from None
    finally:
        ledger.close()
    if as_json:
        print_json({"schema": EXPORT_VERSION, "format": form, "out": out, "rows": number})
    stderr().print(f"wrote {count(number, 'row')}", markup=False, highlight=False)


@contextmanager
def _opened(out: str, *, binary: bool) -> Iterator[IO[Any]]:
    if out == "-":
        yield from _standard_output(binary=binary)
        return
    path = Path(out)
    if path.exists() and not path.is_file():  # a pipe or a device: there is nothing to replace
        with _open(path, binary=binary) as file:
            yield file
        return
    # A file that is there is half an export at no time: the whole takes its place.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _open(partial, binary=binary) as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path, *, binary: bool) -> IO[Any]:
    return path.open("wb") if binary else cast("IO[Any]", path.open("w", encoding="utf-8", newline=""))


def _standard_output(*, binary: bool) -> Iterator[IO[Any]]:
    if not binary:
        # csv ends its lines itself, and standard output must not do it again.
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
        yield sys.stdout
        return
    # Parquet asks where in the file it is, which a pipe cannot say.
    with TemporaryFile() as file:
        yield file
        file.seek(0)
        while chunk := file.read(1 << 20):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
