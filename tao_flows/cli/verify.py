"""``tao-flows verify``: whether a bundle is what was signed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tao_flows.cli._console import fail, print_json
from tao_flows.errors import TaoError
from tao_flows.governance.anchors import read_anchors
from tao_flows.governance.failures import Failure
from tao_flows.governance.keys import VerifyKey
from tao_flows.governance.verify import Verdict, verify
from tao_flows.report.text import count

FALSE = 1
"""Exit status where what was asked about is not so."""
KeyOption = Annotated[
    list[Path],
    typer.Option("--key", metavar="PUB", help="The public key, from elsewhere than the bundle; may be given again."),
]


def verify_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's directory or archive.")],
    key: KeyOption,
    anchor: Annotated[
        Path | None, typer.Option("--anchor", metavar="FILE", help="Heads held elsewhere, of which it has to be one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Check offline that nothing in a bundle has changed since it was signed. Ends with 1 if something has."""
    try:
        anchors = None if anchor is None else read_anchors(anchor)
        verdict = verify(bundle, [VerifyKey.load(path) for path in key], anchors)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json(verdict.to_json())
    else:
        _show(verdict)
    if not verdict.ok:
        raise typer.Exit(FALSE)


def failure_line(failure: Failure) -> str:
    """``CHAIN_HASH  decisions.jsonl:7  what that means``."""
    place = failure.file if failure.line is None else f"{failure.file}:{failure.line}"
    return f"{failure.code:<20} {place:<28} {failure.summary}"


def _show(verdict: Verdict) -> None:
    for failure in verdict.failures:
        print(failure_line(failure))
    proven = count(verdict.proven.size, "line")
    if not verdict.ok:
        print(f"not ok: {proven} of the log shown to be unchanged")
        return
    signed = verdict.statement
    if signed is not None:
        print(f"ok: unchanged since it was signed, {proven} of the log and {count(len(signed.files), 'file')}")
        print(f"bundle {signed.bundle}, revision {signed.revision}, key {signed.keyid}, signed by: {signed.signer}")
        if not signed.complete:
            print("not complete: it is signed to lack parts of the run")
