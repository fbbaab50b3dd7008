"""``tao-flows deposit``: the metadata that a repository asks for with a bundle. Uploading is the user's own command."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from tao_flows.cli._console import fail, print_json
from tao_flows.errors import TaoError


def deposit_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's directory or archive.")],
    key: Annotated[list[Path], typer.Option("--key", metavar="PUB", help="The public key; may be given again.")],
    creator: Annotated[list[str], typer.Option("--creator", help="Who made it, to be cited; may be given again.")],
    publisher: Annotated[str, typer.Option("--publisher", help="Who publishes it.")],
    rights: Annotated[str, typer.Option("--rights", help="An SPDX licence identifier.")] = "",
) -> None:
    """Write DataCite metadata of a bundle that verifies on standard output, as JSON. Nothing is uploaded."""
    from tao_flows.federation.deposit import deposit
    from tao_flows.governance.keys import VerifyKey

    try:
        keys = [VerifyKey.load(path) for path in key]
        now = datetime.now(timezone.utc)
        print_json(deposit(bundle, keys, creators=creator, publisher=publisher, now=now, rights=rights))
    except TaoError as error:
        fail(error)
