"""Seals runs: their decisions as they are taken, and all that was recorded of them once they have ended.

A sealer keeps nothing of its own: what is to be done is read from the ledger and from the bundles each time, so that
another goes on where one was killed. Sealers of one ledger that seal the same runs share the directory of bundles.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from tao_flows.clock import Clock, SystemClock
from tao_flows.errors import BundleError, InputError, LedgerError
from tao_flows.governance import dsse
from tao_flows.governance.bundling import Making, appended, close, last_place_in, write_documents
from tao_flows.governance.chain import Head
from tao_flows.governance.clean import clean
from tao_flows.governance.facts import Facts, read_facts
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import ATTESTATION, DECISIONS, bundle_name, bundle_path, latest_revision
from tao_flows.governance.provider import ProviderInputs
from tao_flows.governance.statement import STATEMENT_PAYLOAD, Statement
from tao_flows.governance.writer import CHECKPOINT_EVERY, BundleWriter, Sealed
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.runpages import BEGINNING, decisions_of, ref_of, stamp_of
from tao_flows.ledger.seals import Seal, end_turn, last_seal, renew_turn, runs_to_look_at, take_turn
from tao_flows.records import UNSEEN_RUN, RunRecord, Segment
from tao_flows.telemetry.procfs import is_alive, this_segment
from tao_flows.units import NS_PER_S

SETTLE_S: Final = 15.0
"""How long after a run's end its late records are waited for: an agent's figures, what lay in a spool."""
LEASE_S: Final = 120.0
"""A sealer that says nothing for so long has lost its turn."""
LOOK_BACK_S: Final = 90 * 86_400.0
"""Runs that started before are not looked at unless they are named."""
ADVANCE_S: Final = 30.0
"""Seconds between two looks at the decisions of a run that is under way."""
RETRY_S: Final = 300.0
"""A run that could not be sealed is tried again after that."""
UNSEEN_S: Final = 86_400.0
"""A run of which only tasks are known is taken to be over when nothing was heard of it for so long."""
_LOOKS_S: Final = (60.0, 3_600.0, 86_400.0)
"""A sealed run is looked at again, for late records, when it is twice as long sealed: not sooner than the first of
these, not later than the second, and after a week each third."""
_WEEK_S: Final = 7 * 86_400.0
_ATTEMPTS: Final = 3
"""Times that a run is read anew because records arrived meanwhile."""
_OUTAGE: Final = frozenset(
    {"LEDGER_BUSY", "LEDGER_DENIED", "LEDGER_FULL", "LEDGER_NEWER", "LEDGER_OLDER", "LEDGER_PAUSED",
     "LEDGER_READ_ONLY", "LEDGER_UNREACHABLE", "LEDGER_WRITE_ONLY", "LEDGER_FOREIGN"}
)  # fmt: skip
"""Errors that are the ledger's and no run's."""
Note = Callable[[str, BaseException], None]


class Sealer:
    """Seals the runs of a ledger. Safe beside other sealers, of this process and of others; not to be shared by threads.

    Args:
        ledger: where the records are.
        root: the directory of bundles.
        key: signs; None writes bundles that say that nobody signed them.
        signer: what kind of process this is: one of ``tao_flows.governance.statement.SIGNERS``.
        clock: the time of reading and sealing.
        note: told of what failed, and doing what. It never raises.
        settle_s: seconds after a run's end until ``look`` seals it.
        lease_s: seconds after which another sealer may take over from one that is silent.
        provider: what the provider of a model states.
        retention: the setting of that name.
        checkpoint_every: entries of the log between two signatures.
        is_ours: which runs ``look`` looks at; by default all of the ledger.
    """

    def __init__(
        self,
        ledger: Ledger,
        root: Path,
        key: SigningKey | None,
        signer: str,
        *,
        clock: Clock | None = None,
        note: Note | None = None,
        settle_s: float = SETTLE_S,
        lease_s: float = LEASE_S,
        provider: ProviderInputs | None = None,
        retention: str = "",
        checkpoint_every: int = CHECKPOINT_EVERY,
        is_ours: Callable[[RunRecord], bool] = lambda _: True,
    ) -> None:
        self._is_ours = is_ours
        self._ledger, self._root, self._key, self._signer = ledger, root, key, signer
        self._clock = clock or SystemClock()
        self._note: Note = note or (lambda _doing, _error: None)
        self._settle_s, self._lease_s = settle_s, lease_s
        self._provider, self._retention, self._every = provider, retention, checkpoint_every
        self._holder: Segment = this_segment()
        self._advanced: dict[RunRef, float] = {}

    def seal(self, ref: RunRef) -> Sealed:
        """Seals a run as it stands now, ended or not; what was sealed and has not changed stays as it is.

        Raises:
            InputError: RUN_NOT_FOUND.
            BundleError: BUNDLE_BUSY, another sealer is at it.
            LedgerError: the ledger cannot be read or written.
            OSError: the bundle cannot be written.
        """
        run = _stored(self._ledger, ref)
        sealed = self._sealed(run)
        if sealed is None:
            raise BundleError("BUNDLE_BUSY", f"another sealer is at run {run.run_id}", "let it finish, and try again")
        return sealed[0]

    def look(self) -> list[RunRecord]:
        """One pass over the runs of the ledger; those that were sealed by it.

        A run that has ended and settled is sealed, one whose sealer was killed is finished, one to which records came
        late gets a new revision, and of one under way the new decisions are logged. Never raises: what fails is noted,
        and tried again by a later pass. A ledger that is away ends the pass.
        """
        since_ns = max(0, self._clock.wall_ns() - round(LOOK_BACK_S * NS_PER_S))
        done: list[RunRecord] = []
        try:
            runs = runs_to_look_at(self._ledger, since_ns, lambda error: self._note("looking for runs to seal", error))
            done.extend(filter(self._looked_at, filter(self._is_ours, runs)))
        except LedgerError as error:
            self._note("looking for runs to seal", error)
        return done

    def _looked_at(self, run: RunRecord) -> bool:
        """Whether the run was sealed now."""
        try:
            if self._is_due(run):
                self._advanced.pop(ref_of(run), None)
                sealed = self._sealed(run)
                return sealed is not None and sealed[1]
            if run.ended_wall_ns is None and run.state not in ("lost", UNSEEN_RUN):
                self._advance(run)
        except LedgerError as error:
            if error.code in _OUTAGE:
                raise
            self._note(f"sealing run {run.run_id}", error)
        except Exception as error:  # noqa: BLE001 - one bad run never stops the others
            self._note(f"sealing run {run.run_id}", error)
        return False

    def _is_due(self, run: RunRecord) -> bool:
        """Whether a run has ended, and its late records are in."""
        now_ns = self._clock.wall_ns()
        if run.ended_wall_ns is not None:
            return now_ns >= run.ended_wall_ns + round(self._settle_s * NS_PER_S)
        if run.state != UNSEEN_RUN:
            return run.state == "lost"
        with self._ledger.transaction(write=False) as tx:
            ((last_ns, open_tasks),) = tx.execute(
                """SELECT max(last_wall_ns), sum(CASE WHEN state IN ('running', 'deferred') THEN 1 ELSE 0 END)
                FROM tasks WHERE engine = :engine AND namespace = :namespace AND run_id = :run_id AND flow = :flow""",
                engine=run.engine, namespace=run.namespace, run_id=run.run_id, flow=run.flow,
            )  # fmt: skip
        return last_ns is not None and not open_tasks and now_ns >= last_ns + round(UNSEEN_S * NS_PER_S)

    def _sealed(self, run: RunRecord) -> tuple[Sealed, bool] | None:
        """The bundle of a run, and whether it was made now; None: another sealer has the turn."""
        ref = ref_of(run)
        if not take_turn(self._ledger, ref, self._holder, self._lease_s, is_alive):
            return None
        look_in_s: float | None = RETRY_S
        seal: Seal | None = None
        try:
            before = last_seal(self._ledger, ref)
            if before is not None and before.stamp == stamp_of(self._ledger, run).digest:
                look_in_s = self._next_look_s(before)
                return _as_sealed(before), False
            adopted = self._adopted(ref, run)
            sealed, seal = adopted or self._written(ref, run)
            look_in_s = _LOOKS_S[0]
            return sealed, True
        finally:
            with suppress(LedgerError):  # the turn runs out by itself, and the bundle is found again
                end_turn(self._ledger, ref, self._holder, look_in_s, seal)

    def _written(self, ref: RunRef, run: RunRecord) -> tuple[Sealed, Seal]:
        beat = _Beat(self._ledger, ref, self._holder, self._lease_s)
        keyid = None if self._key is None else self._key.keyid
        with self._opened(ref) as writer:
            making = Making(writer, keyid, self._signer, self._retention, beat)
            facts = self._documented(making, run)
            for _ in range(_ATTEMPTS - 1):
                run = _stored(self._ledger, ref)
                if stamp_of(self._ledger, run).digest == facts.stamp.digest:
                    break
                facts = self._documented(making, run)
            beat(always=True)
            wall_ns = self._clock.wall_ns()
            sealed = close(making, facts, wall_ns)
        return sealed, _seal_of(sealed, self._signer, facts.stamp.digest, complete=facts.complete, wall_ns=wall_ns)

    def _documented(self, making: Making, run: RunRecord) -> Facts:
        """The facts of a run, once the log and every document say what the ledger has."""
        reduced: list[str] = []
        facts = read_facts(
            self._ledger,
            run,
            now_wall_ns=self._clock.wall_ns(),
            provider=self._provider,
            through=lambda decisions: appended(making.writer, decisions, making.beat, reduced),
        )
        return write_documents(making, facts, reduced)

    def _adopted(self, ref: RunRef, run: RunRecord) -> tuple[Sealed, Seal] | None:
        """A bundle that was closed by a sealer that was killed before it could say so, if it is still up to date."""
        name = bundle_name(ref)
        revision = latest_revision(self._root, name)
        path = bundle_path(self._root, name, revision)
        try:
            envelope = (path / ATTESTATION).read_bytes()
            if self._key is None:
                payload = dsse.unsigned_payload(envelope, STATEMENT_PAYLOAD)
            else:
                payload = dsse.opened(envelope, STATEMENT_PAYLOAD, [self._key.public])
            statement = Statement.of(payload)
        except (OSError, BundleError):
            return None
        about = statement.about
        if about.get("ledger") != stamp_of(self._ledger, run).digest:
            return None
        sealed = Sealed(path, hashlib.sha256(envelope).hexdigest(), statement.chain, revision, statement.keyid)
        wall_ns = int(about["sealed"]["wall_ns"])
        return sealed, _seal_of(
            sealed, statement.signer, str(about["ledger"]), complete=statement.complete, wall_ns=wall_ns
        )

    def _advance(self, run: RunRecord) -> None:
        """Logs what was newly decided in a run that is under way."""
        ref = ref_of(run)
        now_s = time.monotonic()
        if now_s < self._advanced.get(ref, 0.0):
            return
        self._advanced[ref] = now_s + ADVANCE_S
        path = bundle_path(self._root, bundle_name(ref), max(1, latest_revision(self._root, bundle_name(ref))))
        if (path / ATTESTATION).exists() or next(decisions_of(self._ledger, ref, page=1), None) is None:
            return  # of a run that goes on after it was sealed, the next revision has it all
        if not take_turn(self._ledger, ref, self._holder, self._lease_s, is_alive):
            return
        try:
            beat = _Beat(self._ledger, ref, self._holder, self._lease_s)
            with self._opened(ref) as writer:
                after = last_place_in(writer.path / DECISIONS, writer.head.size) or BEGINNING
                # What arrived behind that place is added when the run is sealed.
                for _ in appended(writer, map(clean, decisions_of(self._ledger, ref, after)), beat, []):
                    pass
                beat(always=True)
                writer.checkpoint()
        finally:
            with suppress(LedgerError):
                end_turn(self._ledger, ref, self._holder, None)

    @contextmanager
    def _opened(self, ref: RunRef) -> Iterator[BundleWriter]:
        with BundleWriter(self._root, bundle_name(ref), self._key, checkpoint_every=self._every) as writer:
            yield writer

    def _next_look_s(self, seal: Seal) -> float:
        age_s = (self._clock.wall_ns() - seal.sealed_wall_ns) / NS_PER_S
        least_s, most_s, rare_s = _LOOKS_S
        return rare_s if age_s > _WEEK_S else min(most_s, max(least_s, age_s))


class _Beat:
    """Renews a turn from time to time.

    Raises:
        BundleError: BUNDLE_BUSY, another sealer has taken over.
    """

    def __init__(self, ledger: Ledger, ref: RunRef, holder: Segment, lease_s: float) -> None:
        self._renew = partial(renew_turn, ledger, ref, holder, lease_s)
        self._every_s = lease_s / 4
        self._last_s = time.monotonic()

    def __call__(self, *, always: bool = False) -> None:
        now_s = time.monotonic()
        if not always and now_s < self._last_s + self._every_s:
            return
        if not self._renew():
            raise BundleError("BUNDLE_BUSY", "another sealer has taken over", "it finishes the bundle")
        self._last_s = now_s


def _stored(ledger: Ledger, ref: RunRef) -> RunRecord:
    from tao_flows.ledger.reads import find_run

    run = find_run(ledger, ref)
    if run is None:
        raise InputError(
            "RUN_NOT_FOUND", f"no run {ref.run_id!r} is recorded", "see tao-flows report for those there are"
        )
    return run


def _seal_of(sealed: Sealed, signer: str, stamp: str, *, complete: bool, wall_ns: int) -> Seal:
    return Seal(
        revision=sealed.revision,
        size=sealed.head.size,
        head=sealed.head.head,
        digest=sealed.digest,
        keyid=sealed.keyid or "",
        place=str(sealed.path.absolute()),
        signer=signer,
        complete=complete,
        stamp=stamp,
        sealed_wall_ns=wall_ns,
    )


def _as_sealed(seal: Seal) -> Sealed:
    return Sealed(Path(seal.place), seal.digest, Head(seal.size, seal.head), seal.revision, seal.keyid or None)
