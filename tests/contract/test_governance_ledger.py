"""What governance asks of a ledger, the same on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_run import REF, RUN, SEGMENT, S, account, decision, environment, record_run, task

from tao_flows.governance.keys import SigningKey
from tao_flows.governance.sealer import Sealer
from tao_flows.governance.verify import verify
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.environments import environments_of
from tao_flows.ledger.runpages import DecisionPlace, decisions_of, stamp_of, tasks_of
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.seals import (
    Seal,
    end_turn,
    last_of_flow,
    last_seal,
    renew_turn,
    runs_to_look_at,
    seals_of,
    take_turn,
)
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.wireformat import Entry, decode, encode
from tao_flows.records import Incident, ProcessEnvironment, RunRecord

SEAL = Seal(1, 3, "a" * 64, "b" * 64, "c" * 64, "/bundles/x", "seal", complete=True, stamp="s", sealed_wall_ns=5)
OTHER = replace(SEGMENT, pid=8)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else str(tmp_path / "l.db")
    opened = open_ledger(url)
    yield opened
    opened.close()


def unknown(_segment: object) -> None:
    """Of another host's process nobody knows."""


def test_pages_give_every_decision_once_in_order_of_time(ledger: Ledger) -> None:
    written = [decision(at, of=task(name, instance=str(at % 3))) for at in (5, 1, 1_000, -4) for name in ("b", "a")]
    for each in written:
        ledger.put_decision(each)
    ledger.put_decision(decision(2, of=task(ref=replace(REF, flow="another"))))
    found = list(decisions_of(ledger, REF, page=3))
    assert found == sorted(written, key=DecisionPlace.of)
    assert list(decisions_of(ledger, REF, DecisionPlace.of(found[4]), page=2)) == found[5:]


def test_pages_give_every_segment_once_those_of_a_try_together(ledger: Ledger) -> None:
    written = [
        task(name, number=number, segment=replace(SEGMENT, pid=pid), started_wall_ns=S * pid)
        for pid in (3, 1, 2) for name in ("b", "a") for number in (1, 2)
    ]  # fmt: skip
    for each in written:
        ledger.put_task(each)
    found = list(tasks_of(ledger, REF, page=4))
    assert sorted(map(repr, found)) == sorted(map(repr, written))
    tries = [each.key for each in found]
    assert [key for at, key in enumerate(tries) if key not in tries[:at]] == tries[::3]


@pytest.mark.parametrize("kind", ["task", "replaced task", "decision", "account", "incident", "run"])
def test_every_later_record_changes_the_stamp_and_the_same_one_again_does_not(ledger: Ledger, kind: str) -> None:
    record_run(ledger)
    before = stamp_of(ledger, RUN)
    record_run(ledger)
    assert stamp_of(ledger, RUN).digest == before.digest
    match kind:
        case "task":
            ledger.put_task(task("more"))
        case "replaced task":
            late = task("score", 77)
            assert late.ended_wall_ns is not None
            ledger.put_task(replace(late, ended_wall_ns=late.ended_wall_ns + 1))
        case "decision":
            ledger.put_decision(decision(-1))
        case "account":
            ledger.put_account(REF, account("node-2"))
        case "incident":
            ledger.put_incident(Incident("X", "x", wall_ns=RUN.started_wall_ns, run_id=REF.run_id))
        case _:
            assert RUN.ended_wall_ns is not None
            ledger.put_run(replace(RUN, state="failed", ended_wall_ns=RUN.ended_wall_ns + 1))
    assert stamp_of(ledger, RUN).digest != before.digest


def test_thousands_of_processes_alike_store_one_environment(ledger: Ledger) -> None:
    processes = [replace(SEGMENT, pid=pid) for pid in range(450)]
    for process in processes:
        ledger.put_environment(environment(process))
    ledger.put_environment(environment(replace(SEGMENT, host="node-2"), mode="advise"))
    found = environments_of(ledger, [each.process for each in (*processes, replace(SEGMENT, host="node-2"))])
    assert sorted((each.processes, each.hosts) for each in found) == [(1, ("node-2",)), (450, ("node-1",))]


def test_an_environment_goes_the_way_of_every_record(ledger: Ledger, tmp_path: Path) -> None:
    record = environment(OTHER)
    entry = decode(encode(Entry(record)))
    assert isinstance(entry.record, ProcessEnvironment)
    assert entry.record == record
    Spool(tmp_path / "spool").append([encode(entry)])
    safe = SafeLedger(ledger, spool=Spool(tmp_path / "spool"))
    assert safe.flush(5)
    assert [each.processes for each in environments_of(ledger, [OTHER.process])] == [1]


def test_one_holder_at_a_time_has_a_turn(ledger: Ledger) -> None:
    assert take_turn(ledger, REF, SEGMENT, 60, unknown)
    assert not take_turn(ledger, REF, OTHER, 60, unknown)
    assert renew_turn(ledger, REF, SEGMENT, 60)
    assert not renew_turn(ledger, REF, OTHER, 60)
    end_turn(ledger, REF, OTHER, None)
    assert not take_turn(ledger, REF, OTHER, 60, unknown)
    assert take_turn(ledger, REF, OTHER, 60, lambda segment: segment != SEGMENT)
    end_turn(ledger, REF, OTHER, None)
    assert take_turn(ledger, REF, SEGMENT, -1, unknown)
    assert take_turn(ledger, REF, OTHER, 60, unknown)


def test_a_seal_is_written_once_with_the_end_of_its_turn(ledger: Ledger) -> None:
    for _ in range(2):
        assert take_turn(ledger, REF, SEGMENT, 60, unknown)
        end_turn(ledger, REF, SEGMENT, 60, SEAL)
    second = replace(SEAL, revision=2, complete=False, sealed_wall_ns=9)
    assert take_turn(ledger, REF, SEGMENT, 60, unknown)
    end_turn(ledger, REF, SEGMENT, 60, second)
    assert seals_of(ledger, replace(REF, flow="")) == [SEAL, second]
    assert last_seal(ledger, REF) == second
    assert last_of_flow(ledger, REF.engine, REF.namespace, REF.flow) == (REF, second)
    assert last_seal(ledger, replace(REF, run_id="another")) is None


def test_runs_are_looked_at_when_they_are_due(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tao_flows.ledger.seals._PAGE", 7)
    runs = [replace(RUN, run_id=f"r{number:03}", started_wall_ns=RUN.started_wall_ns + number) for number in range(16)]
    for run in runs:
        ledger.put_run(run)

    def due() -> list[RunRecord]:
        return list(runs_to_look_at(ledger, RUN.started_wall_ns))

    assert due() == runs
    ref = replace(REF, run_id="r000")
    assert take_turn(ledger, ref, SEGMENT, 60, unknown)
    end_turn(ledger, ref, SEGMENT, 3_600)
    assert due() == runs[1:]
    assert take_turn(ledger, ref, SEGMENT, 60, unknown)
    end_turn(ledger, ref, SEGMENT, None)
    assert due() == runs


def test_a_run_is_sealed_from_either_database(ledger: Ledger, tmp_path: Path) -> None:
    record_run(ledger, 12)
    key = SigningKey.generate()
    sealed = Sealer(ledger, tmp_path / "b", key, "seal").seal(REF)
    said = verify(sealed.path, [key.public])
    assert (said.ok, said.complete, sealed.head.size) == (True, True, 12)
