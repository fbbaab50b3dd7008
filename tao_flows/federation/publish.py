"""What an organisation publishes for its partners, as files: a directory that is shared, or served by any web server.

``pools.jsonl`` (descriptors), ``heads.dsse.json`` (heads of bundles), ``records/ORG/*.dsse.json`` (one a run that ORG sent).
A file is replaced as a whole, so that nobody reads half of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from tao_flows.errors import ConfigError, InputError
from tao_flows.federation import descriptor as descriptors
from tao_flows.federation import heads as heads_of
from tao_flows.federation import records
from tao_flows.federation.descriptor import Descriptor, read_descriptor
from tao_flows.federation.documents import LONGEST_TEXT
from tao_flows.federation.offers import POOLS_FILE
from tao_flows.federation.records import EnergyRecord, RunHead, age_of, document_name, read_record, sent_by
from tao_flows.figures import Figure
from tao_flows.governance import dsse
from tao_flows.governance.facts import Facts, read_facts
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import bundle_name
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.partners import ORG
from tao_flows.records import RunRecord
from tao_flows.units import NS_PER_S, s_from_ns

LATE_S: Final = 60.0
"""What is still to come of a run's figures or its seal is waited for so long after its end."""
KEPT_DAYS: Final = 30
"""Runs that began longer ago are published no more."""
_MOST_TEXTS: Final = 32


@dataclass(frozen=True)
class Publisher:
    """Signs and writes an organisation's documents.

    Raises (every method):
        ConfigError: UNWRITABLE_FILE, a file cannot be written.
    """

    org: str
    key: SigningKey
    out: Path

    def pools(self, new: Sequence[Descriptor]) -> Sequence[Descriptor]:
        """Publishes descriptors beside those of other pools that are there; all of them.

        Raises:
            InputError: the file there is no file of ours, or of another key.
        """
        lines: dict[str, tuple[Descriptor, bytes]] = {}
        for line in _lines(self.out / POOLS_FILE):
            there = read_descriptor(dsse.opened(line, descriptors.PAYLOAD_TYPE, [self.key.public]))
            lines[there.pool_id] = (there, line)
        for each in new:
            before, _ = lines.get(each.pool_id, (None, b""))
            told = replace(each, seq=_after(before, each.seq))
            lines[each.pool_id] = (told, self._sign(told.to_payload(), descriptors.PAYLOAD_TYPE))
        self._write(POOLS_FILE, b"".join(line + b"\n" for _, line in lines.values()))
        return [each for each, _ in lines.values()]

    def heads(self, heads: Iterable[RunHead], now: datetime) -> int:
        """Publishes the newest heads, if there are others than before; how many."""
        newest = tuple(heads)[-heads_of.MOST_HEADS :]
        signed = self._own(heads_of.HEADS_FILE, heads_of.PAYLOAD_TYPE)
        before = None if signed is None else heads_of.read_heads(signed)
        if before is None or before.heads != newest:
            told = heads_of.Heads(self.org, _after(before, age_of(now)), newest)
            self._write(heads_of.HEADS_FILE, self._sign(told.to_payload(), heads_of.PAYLOAD_TYPE))
        return len(newest)

    def record(self, record: EnergyRecord) -> bool:
        """Publishes a run's record; False where it is there already, but for its number."""
        name = document_name(record.for_org, record.run_id)
        signed = self._own(name, records.PAYLOAD_TYPE)
        before = None if signed is None else read_record(signed)
        # Both as they are read: lists are sorted then.
        new = read_record(record.to_payload())
        if before is not None and replace(before, seq=new.seq) == new:
            return False
        new = replace(record, seq=_after(before, record.seq))
        self._write(name, self._sign(new.to_payload(), records.PAYLOAD_TYPE))
        return True

    def _sign(self, payload: bytes, payload_type: str) -> bytes:
        return dsse.sign(payload, payload_type, self.key)

    def _own(self, name: str, payload_type: str) -> bytes | None:
        """What we published under this name last; None where there is nothing that can be read."""
        try:
            return dsse.opened((self.out / name).read_bytes(), payload_type, [self.key.public])
        except Exception:  # noqa: BLE001 - whatever is wrong with it, a new one takes its place
            return None

    def _write(self, name: str, content: bytes) -> None:
        path = self.out / name
        new = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(content)
            new.replace(path)
        except OSError as error:
            raise ConfigError("UNWRITABLE_FILE", f"{path}: {error.strerror}", "check the directory") from None


def publish_runs(publisher: Publisher, ledger: Ledger, namespace: str, now: datetime, *, sealed: bool) -> int:
    """Publishes the heads of our bundles, and the records of runs that partners sent; how many records are new.

    Args:
        publisher: signs and writes.
        ledger: where runs are.
        namespace: whose runs.
        now: the present, aware.
        sealed: bundles are made here: a record waits for its bundle's seal a while.

    Raises:
        LedgerError: the ledger cannot be read.
        ConfigError: a file cannot be written.
    """
    heads = heads_of.own_heads(ledger, namespace)
    publisher.heads(heads.values(), now)
    now_ns = round(now.timestamp() * NS_PER_S)
    new = 0
    for run in ledger.runs(now_ns - KEPT_DAYS * 86_400 * NS_PER_S):
        for_org = sent_by(run)
        if run.namespace != namespace or run.ended_wall_ns is None or not ORG.fullmatch(for_org):
            continue
        facts = read_facts(ledger, run, now_wall_ns=now_ns)
        head = heads.get(bundle_name(RunRef(run.engine, run.namespace, run.run_id, run.flow)))
        if s_from_ns(now_ns - run.ended_wall_ns) < LATE_S and (_is_awaited(facts) or (sealed and head is None)):
            continue
        new += publisher.record(record_of(facts, run, publisher.org, for_org, head, now))
    return new


def record_of(
    facts: Facts, run: RunRecord, org: str, for_org: str, head: RunHead | None, now: datetime
) -> EnergyRecord:
    """The record of a run, from what the ledger holds of it."""
    report = facts.report
    body = () if report.flow_body is None else (report.flow_body.energy,)
    energy = Figure.total((report.energy, *body)) if report.tasks or not body else Figure.total(body)
    return EnergyRecord(
        org=org,
        for_org=for_org,
        seq=age_of(now),
        engine=run.engine,
        flow=run.flow,
        run_id=run.run_id,
        state=run.state,
        energy=replace(energy, sources=_shown(energy.sources), unknown_parts=_shown(energy.unknown_parts)),
        wall_s=report.wall_s,
        cpu_s=report.cpu_s,
        method=", ".join(report.methods)[:LONGEST_TEXT] or "none",
        complete=facts.complete,
        gaps=tuple(gap.code for gap in facts.gaps),
        head=head,
    )


def _after(before: Descriptor | heads_of.Heads | EnergyRecord | None, seq: int) -> int:
    """A number after the last one, also where the clock was set back since."""
    return seq if before is None else max(seq, before.seq + 1)


def _is_awaited(facts: Facts) -> bool:
    return any(gap.code in {"MEASUREMENT_PENDING", "TASK_NOT_ENDED"} for gap in facts.gaps)


def _shown(texts: Sequence[str]) -> tuple[str, ...]:
    """Names as a document may hold them: printable, short, and not too many."""
    cleaned = ("".join(filter(str.isprintable, each))[:LONGEST_TEXT] for each in texts)
    return tuple(each for each in cleaned if each)[:_MOST_TEXTS]


def _lines(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError("UNREADABLE_FILE", f"{path}: {error.strerror}", "check the directory") from None
