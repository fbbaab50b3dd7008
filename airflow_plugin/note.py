"""The lines on a DAG run that say what it cost, and which bundle is its record. An author's note stays, above them."""

from __future__ import annotations

from typing import Final

from airflow_plugin._compat import change_note
from tao_flows.ledger.seals import Seal
from tao_flows.ledger.totals import RunTotals
from tao_flows.report.text import percent
from tao_flows.units import format_energy_interval

MARK: Final = "tao-flows: "
"""Our line begins with it, and a later one takes its place."""
BUNDLE_MARK: Final = "tao-flows bundle: "
"""The same of the line that names the run's bundle."""
MOST_CHARACTERS: Final = 1_000
"""What Airflow's database keeps of a note."""
_WORDS: Final = {"defer": "deferred", "reroute": "rerouted", "deny": "denied"}


def note_line(totals: RunTotals) -> str:
    """What a run cost, on one line."""
    energy = totals.energy
    parts = ["energy unknown"]
    if energy.value_j is not None:
        parts = [f"{format_energy_interval(energy.value_j, energy.low_j, energy.high_j)} {energy.quality}"]
        if energy.coverage < 1:
            parts.append(f"{1 - energy.coverage:.0%} of the parts unknown")
    if totals.overhead_share is not None:
        parts.append(f"overhead {percent(totals.overhead_share).replace(' %', '%')}")
    parts += [f"{number:,} {_WORDS.get(action, action)}" for action, number in sorted(totals.actions.items())]
    if totals.lost:
        parts.append(f"{totals.lost:,} lost")
    return MARK + ", ".join(parts)


def bundle_line(seal: Seal) -> str:
    """Which bundle is the run's, on one line."""
    record = "complete" if seal.complete else "incomplete"
    return f"{BUNDLE_MARK}sha256:{seal.digest}, {record}, " + (f"key {seal.keyid}" if seal.keyid else "unsigned")


def with_line(note: str | None, line: str) -> str | None:
    """A note with our line in it; None where it is there already, or there is no room for it."""
    mark = BUNDLE_MARK if line.startswith(BUNDLE_MARK) else MARK
    others = [each for each in (note or "").splitlines() if not each.startswith(mark)]
    changed = "\n".join([*others, line])
    return None if changed == note or len(changed) > MOST_CHARACTERS else changed


def put_note(dag_id: str, run_id: str, line: str) -> bool:
    """Puts our line on a DAG run, in a session of its own; whether the run has it now.

    Raises:
        Exception: Airflow's database cannot be written.
    """
    return change_note(dag_id, run_id, lambda note: with_line(note, line))
