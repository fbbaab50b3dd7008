"""``tao-flows anchor``: noting elsewhere what was signed, so that signing it anew is seen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tao_flows.cli._console import complain, fail, print_json
from tao_flows.cli.verify import FALSE, KeyOption, failure_line
from tao_flows.clock import SystemClock, iso_from_ns
from tao_flows.errors import BundleError, TaoError
from tao_flows.governance.anchors import Anchor, add_anchors
from tao_flows.governance.keys import VerifyKey
from tao_flows.governance.verify import Verdict, anchor_of, verify


def anchor_command(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles' directories or archives.")],
    key: KeyOption,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="Where to note them; kept by others than who signs.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Verify bundles, and note their heads in a file held elsewhere. Notes nothing, and ends with 1, if one is not ok."""
    recorded = iso_from_ns(SystemClock.wall_ns()) or ""
    added: list[Anchor] = []
    try:
        keys = [VerifyKey.load(path) for path in key]
        verdicts = {str(path): verify(path, keys) for path in bundles}
        is_ok = all(verdict.ok for verdict in verdicts.values())
        if is_ok:
            seen = (anchor_of(verdict.statement, verdict.attestation, recorded) for verdict in verdicts.values())
            added = add_anchors(to, [anchor for anchor in seen if anchor is not None])
    except BundleError as error:
        complain(error)
        raise typer.Exit(FALSE) from None
    except TaoError as error:
        fail(error)
    if as_json:
        refused = {path: verdict.to_json()["failures"] for path, verdict in verdicts.items() if not verdict.ok}
        print_json({"schema": "tao-flows/anchors/1", "added": [asdict(anchor) for anchor in added], "refused": refused})
    else:
        _show(verdicts, added)
    if not is_ok:
        raise typer.Exit(FALSE)


def _show(verdicts: dict[str, Verdict], added: list[Anchor]) -> None:
    for path, verdict in verdicts.items():
        for failure in verdict.failures:
            print(f"{path}: {failure_line(failure)}")
    for anchor in added:
        print(f"{anchor.bundle} revision {anchor.revision}: {anchor.size} lines, head {anchor.head}")
