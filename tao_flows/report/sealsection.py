"""The section of a run's page about its bundle: whether it was sealed, by what key, and whether it is whole."""

from __future__ import annotations

from typing import Final

from tao_flows.ledger.seals import Seal
from tao_flows.report.elements import cell, e, section, table, when
from tao_flows.report.links import Links

_NOTE: Final = (
    "A bundle is what this ledger held of the run when it was sealed. Its signature shows that it is unchanged since, "
    "not that its measurements are correct."
)


def seal_section(seal: Seal | None, links: Links) -> str:
    """The section; empty where there is no bundle."""
    if seal is None:
        return ""
    signed = f"<code>{e(seal.keyid, 64)}</code>" if seal.keyid else "no key: it is unsigned and does not verify"
    record = "complete" if seal.complete else "<strong>incomplete</strong>: its files say what is missing"
    rows = [
        ("Record", record),
        ("Digest", f"<code>sha256:{e(seal.digest, 64)}</code>"),
        ("Key", signed),
        ("Sealed", f"{when(seal.sealed_wall_ns)} UTC by <code>{e(seal.signer)}</code>, revision {seal.revision:,}"),
        ("Decisions", f"{seal.size:,} in the chain"),
    ]
    shown = table(("", ""), ((cell(e(name)), cell(value)) for name, value in rows))
    if links.bundle:
        shown += f'<p><a href="{e(links.bundle, 4_000)}" download>Download the bundle</a> (zip)</p>'
    return section("Signed record", _NOTE, shown)
