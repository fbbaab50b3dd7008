"""``tao-flows keys``: the key that signs bundles, and the one that verifies them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tao_flows.cli._console import fail, print_json
from tao_flows.errors import TaoError
from tao_flows.governance.keys import SIGNING_KEY, VERIFY_KEY, keyid_of, new_keys

keys_app = typer.Typer(
    help="Make the keys that bundles are signed and verified with, or show one.", no_args_is_help=True
)

_Json = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]


@keys_app.command("new")
def new_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write them; made if need be.")],
    as_json: _Json = False,
) -> None:
    """Write signing.key, for its owner alone, and signing.pub, for whoever verifies. Nothing is overwritten."""
    try:
        keyid = new_keys(out).keyid
    except TaoError as error:
        fail(error)
    signing_key, public_key = out / SIGNING_KEY, out / VERIFY_KEY
    if as_json:
        print_json({"keyid": keyid, "signing_key": str(signing_key), "public_key": str(public_key)})
        return
    print(f"key {keyid}")
    print(f"{signing_key} signs: keep it where no user code runs")
    print(f"{public_key} verifies: hand it out by another way than the bundles")


@keys_app.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="signing.key or signing.pub.")], as_json: _Json = False
) -> None:
    """Show the id of a key, from the file of either half."""
    try:
        keyid = keyid_of(file)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({"keyid": keyid})
    else:
        print(keyid)
