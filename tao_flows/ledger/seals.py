"""Which runs were sealed into bundles, and whose turn it is to seal one.

Functions over ``Ledger.transaction``, the same statements on SQLite and on PostgreSQL. Each raises LedgerError when the
ledger cannot do it. Turns run out on the database's clock, which all sealers share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Final

from tao_flows.errors import LedgerError
from tao_flows.ledger import codec
from tao_flows.ledger.base import Ledger, RunRef, Transaction
from tao_flows.records import RunRecord, Segment
from tao_flows.units import NS_PER_S

_KEYS: Final = ("engine", "namespace", "run_id", "flow")
_RUN: Final = " AND ".join(f"{key} = :{key}" for key in _KEYS)
_SAME_RUN: Final = " AND ".join(f"turn.{key} = run.{key}" for key in _KEYS)
_PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Seal:
    """A bundle that was closed: enough to tell later that it is still the same one."""

    revision: int
    size: int
    """Entries of its log."""
    head: str
    """Hash of the log's last entry, in hex."""
    digest: str
    """SHA-256 of its attestation, in hex."""
    keyid: str
    """The key that signed it; empty where none did."""
    place: str
    """Its directory, or where its archive was put."""
    signer: str
    """What kind of process held the key."""
    complete: bool
    stamp: str
    """What the ledger held of the run: another stamp now means that records came later."""
    sealed_wall_ns: int


_NAMES: Final = tuple(field.name for field in fields(Seal))
_COLUMNS: Final = ", ".join(_NAMES)


def seals_of(ledger: Ledger, run: RunRef) -> list[Seal]:
    """The seals of a run, the first revision first. A flow left empty means any."""
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT {_COLUMNS} FROM seals WHERE engine = :engine AND namespace = :namespace
                AND run_id = :run_id AND :flow IN ('', flow) ORDER BY flow, revision""",
            **_of(run),
        )
    return [_seal(row) for row in rows]


def last_seal(ledger: Ledger, run: RunRef) -> Seal | None:
    """The latest seal of a run; None where it was never sealed."""
    found = seals_of(ledger, run)
    return max(found, key=lambda seal: seal.revision) if found else None


def last_of_flow(ledger: Ledger, engine: str, namespace: str, flow: str) -> tuple[RunRef, Seal] | None:
    """The run of a flow that was sealed last, and its seal; None where none was."""
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT run_id, {_COLUMNS} FROM seals WHERE engine = :engine AND namespace = :namespace AND flow = :flow
                ORDER BY sealed_wall_ns DESC, revision DESC LIMIT 1""",
            engine=engine, namespace=namespace, flow=flow,
        )  # fmt: skip
    if not rows:
        return None
    run_id, *row = rows[0]
    return RunRef(engine, namespace, run_id, flow), _seal(row)


def take_turn(
    ledger: Ledger, run: RunRef, holder: Segment, lease_s: float, is_alive: Callable[[Segment], bool | None]
) -> bool:
    """Takes the turn to seal a run, for so many seconds; False: another has it.

    Args:
        ledger: where turns are kept.
        run: its flow must be given.
        holder: this process.
        lease_s: the turn runs out by itself after that, unless it is renewed.
        is_alive: whether a process is; one that is known to be gone has lost its turn.
    """
    with ledger.transaction() as tx:
        now_ns = tx.now_ns()
        tx.change(
            """INSERT INTO sealing (engine, namespace, run_id, flow, holder, lease_until_wall_ns, look_wall_ns)
            VALUES (:engine, :namespace, :run_id, :flow, '', 0, 0)
            ON CONFLICT (engine, namespace, run_id, flow) DO NOTHING""",
            **_of(run),
        )
        ((by, until_ns),) = tx.execute(
            f"SELECT holder, lease_until_wall_ns FROM sealing WHERE {_RUN} {tx.for_update}", **_of(run)
        )
        if by and until_ns > now_ns and not _is_gone(by, is_alive):
            return False
        _hold(tx, run, holder.id, now_ns + round(lease_s * NS_PER_S))
    return True


def renew_turn(ledger: Ledger, run: RunRef, holder: Segment, lease_s: float) -> bool:
    """Makes a turn last so many seconds from now; False: another has it by now."""
    with ledger.transaction() as tx:
        until_ns = tx.now_ns() + round(lease_s * NS_PER_S)
        changed = tx.change(
            f"UPDATE sealing SET lease_until_wall_ns = :until WHERE {_RUN} AND holder = :holder",
            until=until_ns, holder=holder.id, **_of(run),
        )  # fmt: skip
    return changed == 1


def end_turn(ledger: Ledger, run: RunRef, holder: Segment, look_in_s: float | None, seal: Seal | None = None) -> None:
    """Gives the turn back, with the seal that came of it in the same transaction.

    Args:
        ledger: where turns are kept.
        run: its flow must be given.
        holder: this process; of another's turn nothing is changed.
        look_in_s: seconds until the run is next looked at; None: as soon as anybody looks.
        seal: the bundle that was closed; one that is written twice is one.
    """
    with ledger.transaction() as tx:
        if seal is not None:
            values = dict(zip(_NAMES, astuple(seal), strict=True)) | {"complete": int(seal.complete)}
            tx.change(
                f"""INSERT INTO seals (engine, namespace, run_id, flow, {_COLUMNS})
                VALUES (:engine, :namespace, :run_id, :flow, {", ".join(f":{name}" for name in _NAMES)})
                ON CONFLICT (engine, namespace, run_id, flow, revision) DO NOTHING""",
                **_of(run), **values,
            )  # fmt: skip
        look_ns = 0 if look_in_s is None else tx.now_ns() + round(look_in_s * NS_PER_S)
        tx.change(
            f"""UPDATE sealing SET holder = '', lease_until_wall_ns = 0, look_wall_ns = :look
            WHERE {_RUN} AND holder = :holder""",
            look=look_ns, holder=holder.id, **_of(run),
        )  # fmt: skip


def runs_to_look_at(
    ledger: Ledger, since_wall_ns: int, note: Callable[[LedgerError], None] = lambda _error: None
) -> Iterator[RunRecord]:
    """Runs started since that are due, in order of start. One that cannot be read is told to ``note``, and left out."""
    after: tuple[Any, ...] = (since_wall_ns - 1, "", "", "", "")
    place = "run.started_wall_ns, run.engine, run.namespace, run.run_id, run.flow"
    while True:
        with ledger.transaction(write=False) as tx:
            rows = tx.execute(
                f"""SELECT {place}, run.body FROM runs run LEFT JOIN sealing turn ON {_SAME_RUN}
                WHERE run.started_wall_ns >= :since
                    AND ({place}) > (:a0, :a1, :a2, :a3, :a4)
                    AND (turn.look_wall_ns IS NULL OR turn.look_wall_ns <= :now)
                ORDER BY {place} LIMIT :page""",
                since=after[0], now=tx.now_ns(), page=_PAGE,
                **{f"a{number}": value for number, value in enumerate(after)},
            )  # fmt: skip
        for row in rows:
            try:
                run = codec.load(RunRecord, row[-1])
            except LedgerError as error:
                note(error)
                continue
            yield run
        if len(rows) < _PAGE:
            return
        after = tuple(rows[-1][:-1])


def _seal(row: Sequence[Any]) -> Seal:
    found = dict(zip(_NAMES, row, strict=True))
    return Seal(**{**found, "complete": bool(found["complete"])})


def _hold(tx: Transaction, run: RunRef, holder: str, until_ns: int) -> None:
    tx.change(
        f"UPDATE sealing SET holder = :holder, lease_until_wall_ns = :until WHERE {_RUN}",
        holder=holder, until=until_ns, **_of(run),
    )  # fmt: skip


def _is_gone(holder: str, is_alive: Callable[[Segment], bool | None]) -> bool:
    host, boot_id, pid, started, sequence = holder.rsplit("/", 4)
    return is_alive(Segment(host, boot_id, int(pid), int(started), int(sequence))) is False


def _of(run: RunRef) -> dict[str, object]:
    return {"engine": run.engine, "namespace": run.namespace, "run_id": run.run_id, "flow": run.flow}
