"""Runs that we sent to partners, and what those claim of them: in our ledger under our own run, and labelled as claims.

A run is under way, ended, or accounted for. Its record is looked for once it has ended. Not a figure of it is used before
its signature is verified; one that is refused, or does not come in time, leaves the energy unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Final

from tao_flows.admission.ask import Noted
from tao_flows.clock import Clock
from tao_flows.config import TaoConfig
from tao_flows.errors import InputError, SourceError, TaoError
from tao_flows.federation.documents import MAX_ENVELOPE_BYTES, refused
from tao_flows.federation.fetch import NOT_THERE, read_document
from tao_flows.federation.heads import kept_head
from tao_flows.federation.records import PAYLOAD_TYPE, EnergyRecord, document_name, read_record
from tao_flows.federation.store import Kept, PartnerStore
from tao_flows.federation.trust import load_trust
from tao_flows.figures import Account, CpuTime, Figure, Measurement
from tao_flows.ledger import codec
from tao_flows.ledger.base import Ledger
from tao_flows.records import RunKey, RunRecord, Segment, TaskRecord, TaskState, Who
from tao_flows.units import NS_PER_S, s_from_ns

METHOD: Final = "tao-flows/partner-claim/1"
"""The method of such figures: they teach nothing about our own pools, and are compared with none of ours."""
CLAIM: Final = "PARTNER_CLAIM"
"""Event of a measurement that is a partner's word."""
RECORD_S: Final = 600.0
"""A record that has not come so long after the run's end is missing."""
UNDER_WAY, ENDED, DONE = range(3)
_PAUSE_S: Final = 5.0
"""A partner is asked for records this often, at most."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A run that a partner runs for us."""

    key: RunKey
    """Our run's; its task names the work, and its instance the partner's run."""
    org: str
    pool: str
    """Among ours."""
    flow: str
    """What the partner calls the work."""
    sent_wall_ns: int
    segment: Segment
    """The process that sent it: it is the same in every record of it."""
    who: Who = field(default_factory=Who)
    name: str = ""
    budget: str = ""
    whole_run: bool = True
    """Our run is this work and nothing else, so that its start and end are those of the run."""
    ended_wall_ns: int | None = None
    state: TaskState = TaskState.RUNNING

    @property
    def remote_id(self) -> str:
        """The partner's run."""
        return self.key.instance


class Claims:
    """Follows what was sent. Safe to use from several processes: each step is written once.

    Args:
        ledger: where records are.
        clock: where time comes from.
        noted: told of our failures.
    """

    def __init__(self, ledger: Ledger, clock: Clock, noted: Noted) -> None:
        self._ledger, self._clock, self._noted = ledger, clock, noted
        self._store = PartnerStore(ledger)
        self._asked_ns: int | None = None

    def begun(self, sent: Sent) -> None:
        """Takes note that a partner runs something for us.

        Raises:
            LedgerError: it cannot be written.
        """
        if self._store.find("sent", sent.org, sent.remote_id) is None:
            self._store.put(sent.org, "sent", sent.remote_id, UNDER_WAY, codec.dump(sent))
            self._write(sent)

    def ended(self, org: str, remote_id: str, state: TaskState) -> None:
        """Takes note that it has ended: from now on its record is looked for.

        Raises:
            LedgerError: it cannot be written.
        """
        kept = self._store.find("sent", org, remote_id)
        if kept is not None and kept.seq == UNDER_WAY:
            sent = replace(codec.load(Sent, kept.body), state=state, ended_wall_ns=self._clock.wall_ns())
            self._step(sent, ENDED)
            if sent.whole_run:
                self._ledger.put_run(_run_of(sent))

    def collect(self, config: TaoConfig) -> int:
        """Looks for the records of what has ended; how many runs are accounted for now.

        Takes as long as partners' servers do. Not more than once in some seconds.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        now_ns = self._clock.monotonic_ns()
        if self._asked_ns is not None and now_ns - self._asked_ns < _PAUSE_S * NS_PER_S:
            return 0
        self._asked_ns = now_ns
        waiting = [codec.load(Sent, kept.body) for kept in self._store.sent(DONE) if kept.seq == ENDED]
        return sum(self.settle(sent, config) for sent in waiting)

    def settled(self, org: str, remote_id: str, config: TaoConfig) -> bool:
        """Looks for the record of one run; whether it is accounted for, or was not sent by us.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        kept = self._store.find("sent", org, remote_id)
        if kept is None or kept.seq == DONE:
            return True
        return kept.seq == ENDED and self.settle(codec.load(Sent, kept.body), config)

    def settle(self, sent: Sent, config: TaoConfig) -> bool:
        """Accounts for a run that has ended: by its record, or as unknown; False where the record may still come.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        try:
            record = self._record(sent, config)
        except InputError as error:
            self._noted.note_error(f"verifying the record of a run at {sent.org}", error, run_id=sent.key.run_id)
            return self._close(sent, None)
        except TaoError as error:
            if error.code.startswith("LEDGER"):
                raise
            waited_s = s_from_ns(self._clock.wall_ns() - (sent.ended_wall_ns or 0))
            if waited_s < RECORD_S:
                return False
            summary = f"the record of a run at {sent.org} has not come in {RECORD_S:g} s: {error.summary}"
            remedy = "its energy stays unknown; ask the partner to run: tao-flows pools publish --follow"
            self._noted.note("PARTNER_RECORD_MISSING", summary, remedy=remedy, run_id=sent.key.run_id)
            return self._close(sent, None)
        return self._close(sent, record)

    def _record(self, sent: Sent, config: TaoConfig) -> EnergyRecord:
        spec = config.partners.get(sent.org)
        if spec is None or not config.org:
            raise SourceError(NOT_THERE, f"the settings name no partner {sent.org}, or no org of our own")
        envelope = read_document(spec, document_name(config.org, sent.remote_id), MAX_ENVELOPE_BYTES)
        now = datetime.fromtimestamp(s_from_ns(self._clock.wall_ns()), timezone.utc)
        record = read_record(load_trust(config.trust).opened(envelope, PAYLOAD_TYPE, sent.org, now))
        told = (record.org, record.for_org, record.flow, record.run_id)
        if told != (sent.org, config.org, sent.flow, sent.remote_id):
            raise refused("PARTNER_OTHER_RUN", f"the record of a run at {sent.org} is of another run, or for another")
        kept = [Kept(sent.org, "record", sent.remote_id, record.seq, envelope.decode("ascii"))]
        self._store.put_all([*kept, *([] if record.head is None else [kept_head(sent.org, record.head)])])
        return record

    def _close(self, sent: Sent, record: EnergyRecord | None) -> bool:
        self._write(sent, record)
        self._step(sent, DONE)
        return True

    def _step(self, sent: Sent, seq: int) -> None:
        try:
            self._store.put(sent.org, "sent", sent.remote_id, seq, codec.dump(sent))
        except InputError:
            return  # another process was faster: what it wrote holds

    def _write(self, sent: Sent, record: EnergyRecord | None = None) -> None:
        if sent.whole_run:
            self._ledger.put_run(_run_of(sent))
        self._ledger.put_task(_task_of(sent, record))


def _run_of(sent: Sent) -> RunRecord:
    key = sent.key
    return RunRecord(
        key.engine,
        key.namespace,
        key.flow,
        key.run_id,
        state=str(sent.state),
        started_wall_ns=sent.sent_wall_ns,
        segment=sent.segment,
        ended_wall_ns=sent.ended_wall_ns,
        who=sent.who,
        name=sent.name,
    )


def _task_of(sent: Sent, record: EnergyRecord | None) -> TaskRecord:
    return TaskRecord(
        key=sent.key,
        segment=sent.segment,
        state=sent.state,
        started_wall_ns=sent.sent_wall_ns,
        who=sent.who,
        pool=sent.pool,
        budget=sent.budget,
        task_label=f"{sent.flow} at {sent.org} (its claim)",
        ended_wall_ns=sent.ended_wall_ns,
        measurement=None if record is None else _measured(sent, record),
        method=METHOD,
        budgets=(sent.budget,) if sent.budget else (),
    )


def _measured(sent: Sent, record: EnergyRecord) -> Measurement:
    """The claim as a measurement: every source says whose word it is."""
    whose = f"claim of {sent.org}"
    sources = tuple(f"{whose}: {source}" for source in record.energy.sources) or (whose,)
    energy: Figure = replace(record.energy, sources=sources)
    ended_ns = sent.ended_wall_ns or sent.sent_wall_ns
    wall_s = max(0.0, s_from_ns(ended_ns - sent.sent_wall_ns)) if record.wall_s is None else record.wall_s
    return Measurement(
        label=sent.flow,
        started_wall_ns=sent.sent_wall_ns,
        wall_s=wall_s,
        cpu=CpuTime(record.cpu_s, whose, covers_children=True),
        energy=energy,
        domains=(),
        account=Account(),
        events=(CLAIM, *record.gaps),
        method=METHOD,
    )
