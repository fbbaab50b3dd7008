"""``tao-flows ingest``: takes records over HTTP from who holds a team's token; and makes these tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tao_flows.cli._console import fail, print_json, stderr
from tao_flows.config import load_config, mask_password
from tao_flows.errors import ConfigError, TaoError

ingest_app = typer.Typer(
    help="Take records over HTTP, append-only, from who holds a team's token.", add_completion=False
)

TokensOption = Annotated[Path, typer.Option(metavar="FILE", help="Teams and the hashes of their tokens; mode 0600.")]
_DEFAULT_TOKENS = Path("/etc/tao-flows/ingest-tokens.toml")
_MOST_THREADS = 64


@ingest_app.callback(invoke_without_command=True)
def ingest_command(
    context: typer.Context,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where clients connect.")] = "127.0.0.1:8765",
    tokens: TokensOption = _DEFAULT_TOKENS,
    ledger: Annotated[
        str | None, typer.Option(metavar="URL", help="Where records go. TAO_FLOWS_LEDGER by default.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Requests worked on at once: the most connections to the ledger.")] = 4,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy that speaks TLS is before it: it may listen to other hosts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say on stdout, as JSON, what is served.")] = False,
) -> None:
    """Take records over HTTP, append-only, until SIGTERM."""
    if context.invoked_subcommand is not None:
        return
    from tao_flows.ingest.app import IngestApp
    from tao_flows.ingest.server import IngestServer, parse_listen
    from tao_flows.ingest.tokens import TokenFile
    from tao_flows.ledger import open_ledger
    from tao_flows.ledger.writeonly import WriteOnlyLedger

    try:
        if not 0 < threads <= _MOST_THREADS:
            raise ConfigError("BAD_THREADS", f"--threads is {threads}", f"give a number from 1 to {_MOST_THREADS}")
        host, port = parse_listen(listen, behind_proxy=behind_proxy)
        url = load_config(arguments={"ledger": ledger}).config.ledger
        ledgers = [open_ledger(url) for _ in range(threads)]
        if isinstance(ledgers[0], WriteOnlyLedger):
            remedy = "give --ledger the URL of a database"
            raise ConfigError("LEDGER_WRITE_ONLY", f"{ledgers[0].url} cannot say whose a run is", remedy)
        server = IngestServer(IngestApp(ledgers, TokenFile(tokens)), host, port, threads=threads)
    except TaoError as error:
        fail(error)
    shown = mask_password(url)
    ready = f"ready at {host}:{server.port} (ledger {shown}, at most {threads} connections to it)"
    print(f"tao-flows ingest: {ready}", file=sys.stderr, flush=True)
    if as_json:
        print_json({"host": host, "port": server.port, "ledger": shown, "threads": threads})
        sys.stdout.flush()
    try:
        server.run()
    finally:
        for each in ledgers:
            each.close()


@ingest_app.command("token")
def token_command(
    team: Annotated[str, typer.Option(help="Whose records the token may write.")],
    tokens: TokensOption = _DEFAULT_TOKENS,
    replace: Annotated[bool, typer.Option("--replace", help="End the team's earlier tokens.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Make a token for a team, and print it: it is shown this once."""
    from tao_flows.ingest.tokens import add_token

    try:
        token = add_token(tokens, team, replace=replace)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({"team": team, "token": token, "tokens": str(tokens)})
        return
    print(token)
    stderr().print("this is shown once; TAO_FLOWS_INGEST_TOKEN hands it to tasks", markup=False)
