"""``tao-flows spool``: the records of this host that a ledger does not hold yet."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from tao_flows.cli._console import complain, fail, print_json, stdout
from tao_flows.config import load_config, mask_password
from tao_flows.errors import ConfigError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.forward import Drained, drain, open_sink
from tao_flows.ledger.spool import Spool, spool_directory
from tao_flows.ledger.writeonly import SpoolLedger
from tao_flows.units import NS_PER_S

spool_app = typer.Typer(help="Records of this host that the ledger does not hold yet.", add_completion=False)

DirOption = Annotated[
    Path | None, typer.Option("--dir", metavar="DIR", help="The spool. Where records for the ledger wait by default.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]
_NOT_SENT = 1


@spool_app.command("show")
def show_command(directory: DirOption = None, as_json: JsonOption = False) -> None:
    """Say how many records wait, and since when."""
    try:
        url = load_config().config.ledger
        spool = Spool(directory or _directory(url))
    except TaoError as error:
        fail(error)
    status = spool.status()
    since = None
    if status.oldest_wall_ns is not None:
        since = datetime.fromtimestamp(status.oldest_wall_ns // NS_PER_S, tz=timezone.utc).isoformat()
    if as_json:
        print_json(
            {
                "directory": str(spool.directory),
                "ledger": mask_password(url),
                "segments": status.segments,
                "size_bytes": status.size_bytes,
                "since": since,
                "refused_bytes": status.refused_bytes,
            }
        )
        return
    line = f"{spool.directory}: "
    line += f"{status.size_bytes:,} bytes in {status.segments} files since {since}" if since else "nothing waits"
    if status.refused_bytes:
        line += f"; {status.refused_bytes:,} bytes were refused for good (`spool flush --refused` tries them again)"
    stdout().print(line, markup=False, soft_wrap=True)


@spool_app.command("flush")
def flush_command(
    directory: DirOption = None,
    ledger: Annotated[str | None, typer.Option(metavar="URL", help="Where they go; the ledger by default.")] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Try again what was refused for good, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write what waits to the ledger. Ends with 1 if anything is left."""
    try:
        url = load_config(arguments={"ledger": ledger}).config.ledger
        spool = Spool(directory or _directory(url))
        if refused:
            spool.retry_refused()
        if _is_itself(url, spool):
            raise ConfigError("SPOOL_TO_ITSELF", f"{url} is the spool itself", "give --ledger where its records go")
        drained = drain(spool.directory, open_sink(url))
    except TaoError as error:
        fail(error)
    _say(drained, spool, as_json=as_json)
    if spool.has_records():
        raise typer.Exit(_NOT_SENT)


def _directory(url: str) -> Path:
    directory = spool_directory(url)
    if directory is None:
        raise ConfigError("NO_HOME", "there is no home directory to keep a spool in", "give --dir")
    return directory


def _is_itself(url: str, spool: Spool) -> bool:
    opened = open_ledger(url)
    return isinstance(opened, SpoolLedger) and opened.spool.directory == spool.directory.absolute()


def _say(drained: Drained, spool: Spool, *, as_json: bool) -> None:
    if drained.error is not None:
        complain(drained.error)
    counts = {"taken": drained.taken, "refused": drained.refused, "torn": drained.torn, "strange": drained.strange}
    if as_json:
        left = spool.status().size_bytes
        print_json({**counts, "left_bytes": left, "code": drained.error.code if drained.error else ""})
    else:
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "taken")
        stdout().print(f"{spool.directory}: {said}", markup=False, soft_wrap=True)
