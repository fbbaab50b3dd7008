"""Sealing runs: what is in a bundle, when it is made, and what happens when things go wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_run import (
    REF,
    RUN,
    SEGMENT,
    T0,
    S,
    account,
    decision,
    documents_in,
    environment,
    problems,
    record_run,
    task,
)  # fmt: skip

from tao_flows.errors import BundleError, InputError, LedgerError
from tao_flows.figures import AGENT_PENDING
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.sealer import LEASE_S, Sealer
from tao_flows.governance.verify import verify
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.ledger.runpages import ref_of
from tao_flows.ledger.seals import last_seal, seals_of, take_turn
from tao_flows.records import UNSEEN_RUN, Incident, RunRecord, Segment, TaskState
from tao_flows.testing import FakeClock

KEY = SigningKey.generate()
NOW = T0 + 3_600 * S


class Sealing:
    """A ledger, a directory of bundles and a clock."""

    def __init__(self, ledger: RelationalLedger, root: Path) -> None:
        self.ledger, self.root = ledger, root
        self.clock = FakeClock(wall_ns=NOW)
        self.noted: list[str] = []

    def sealer(self, **more: Any) -> Sealer:
        return Sealer(
            more.pop("ledger", self.ledger), self.root, more.pop("key", KEY), "seal", clock=self.clock,
            note=lambda doing, error: self.noted.append(f"{doing}: {error}"), **more,
        )  # fmt: skip

    def seal(self, ref: RunRef = REF) -> Path:
        return self.sealer().seal(ref).path

    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        with self.ledger.transaction() as tx:  # turns and looks are on the database's own clock
            tx.change("UPDATE sealing SET look_wall_ns = look_wall_ns - :ns", ns=round(seconds * S))


@pytest.fixture
def sealing(tmp_path: Path) -> Iterator[Sealing]:
    with closing(open_ledger(str(tmp_path / "ledger.db"))) as ledger:
        yield Sealing(ledger, tmp_path / "bundles")


def verdict(bundle: Path) -> tuple[bool, bool, list[str]]:
    said = verify(bundle, [KEY.public])
    return said.ok, said.complete, [failure.code for failure in said.failures]


def predicate_of(bundle: Path) -> dict[str, Any]:
    envelope = json.loads((bundle / "attestation.dsse.json").read_bytes())
    predicate: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    return predicate


def entries_of(bundle: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["entry"] for line in (bundle / "decisions.jsonl").read_bytes().splitlines()]


def test_a_run_is_sealed_into_documents_that_their_schemas_take_and_verify_says_ok(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    bundle = sealing.seal()
    assert verdict(bundle) == (True, True, [])
    found = documents_in(bundle)
    for name, schema in (
        ("run.json", "run"), ("energy.json", "energy"), ("violations.json", "violations"),
        ("environment.json", "environments"), ("annex_xi_support.json", "annex_xi_support"),
    ):  # fmt: skip
        assert problems(schema, found[name]) == [], name
    assert [problems("decision", entry) for entry in entries_of(bundle)] == [[], [], []]
    assert problems("predicate", predicate_of(bundle)) == []
    assert {"report.html", "report.md"} <= {path.name for path in bundle.iterdir()}
    assert found["run.json"]["records"] == {"tasks": 2, "decisions": 3, "accounts": 1, "incidents": 1}


def test_figures_are_the_ledgers_own_digits(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    energy = documents_in(sealing.seal())["energy.json"]
    assert energy["tasks_total"]["value_uj"] == "1234567"
    assert {each["task"]: each["energy"]["value_uj"] for each in energy["tasks"]} == {"train": "1234567", "score": None}
    assert energy["windows"][0]["account"]["counter_uj"] == "5000001"
    assert energy["tasks"][1]["segments"][0]["measurement"]["domains"][0]["counter_uj"] == "5000001"


def test_an_environment_is_kept_once_and_told_of_every_run_of_its_processes(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    other = replace(SEGMENT, pid=8)
    sealing.ledger.put_environment(environment(other))
    sealing.ledger.put_task(task("other", segment=other))
    assert sealing.ledger.counts()["environments"] == 1
    (found,) = documents_in(sealing.seal())["environment.json"]["environments"]
    assert (found["processes"], found["hosts"]) == (2, ["node-1"])
    assert found["body"]["packages"] == [{"name": "google-auth", "version": "2.0"}]


def test_what_a_process_said_of_itself_is_not_changed_by_another(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    sealing.ledger.put_environment(environment(mode="forged"))
    (found,) = documents_in(sealing.seal())["environment.json"]["environments"]
    assert found["body"]["settings"] == []


@pytest.mark.parametrize(
    ("late", "code"),
    [
        (lambda ledger: ledger.put_task(replace(task("x"), state=TaskState.LOST, measurement=None)), "TASK_LOST"),
        (
            lambda ledger: ledger.put_task(
                replace(task("x"), state=TaskState.RUNNING, measurement=None, ended_wall_ns=None)
            ),
            "TASK_NOT_ENDED",
        ),
        (lambda ledger: ledger.put_task(replace(task("x"), measurement=None)), "NO_MEASUREMENT"),
        (lambda ledger: ledger.put_task(pending(task("x"))), "MEASUREMENT_PENDING"),
        (lambda ledger: ledger.put_run(replace(RUN, state="lost", ended_wall_ns=None, started_wall_ns=NOW)), "RUN_LOST"),
        (lambda ledger: ledger.put_incident(Incident("LEDGER_DROPPED", "x", wall_ns=T0, run_id=REF.run_id)), "RECORDS_LOST"),
        (lambda ledger: ledger.put_incident(Incident("SPOOL_DROPPED", "x", wall_ns=T0 + S)), "RECORDS_LOST"),
        (lambda ledger: ledger.put_decision(decision(9, request={"text": ["x" * 999] * 9_000})), "DECISION_REDUCED"),
    ],
)  # fmt: skip
def test_a_run_of_which_something_is_missing_is_sealed_as_incomplete_and_says_what(
    sealing: Sealing, late: Any, code: str
) -> None:
    if code != "RUN_LOST":
        record_run(sealing.ledger)
    else:
        sealing.ledger.put_task(task())
    late(sealing.ledger)
    bundle = sealing.seal()
    assert verdict(bundle) == (True, False, [])
    run = documents_in(bundle)["run.json"]
    assert (run["complete"], [gap["code"] for gap in run["gaps"]]) == (False, [code])
    assert problems("run", run) == []
    assert predicate_of(bundle)["gaps"] == [code]


def pending(record: Any) -> Any:
    return replace(record, measurement=replace(record.measurement, events=(AGENT_PENDING,)))


def test_a_loss_at_another_time_is_not_this_runs(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    sealing.ledger.put_incident(Incident("SPOOL_DROPPED", "x", wall_ns=T0 + 7_200 * S))
    assert documents_in(sealing.seal())["run.json"]["complete"] is True


def test_what_was_sealed_and_has_not_changed_stays_as_it_is(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    first = sealing.sealer().seal(REF)
    assert sealing.sealer().seal(REF) == first
    assert sealing.sealer().look() == []
    assert len(seals_of(sealing.ledger, REF)) == 1


def test_records_that_arrive_after_the_seal_make_a_new_revision_that_names_the_former(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    first = sealing.sealer().seal(REF)
    before = {path.name: path.read_bytes() for path in first.path.iterdir()}
    sealing.ledger.put_decision(decision(-5))
    sealing.ledger.put_task(task("late", 5))
    assert sealing.sealer().look() == []
    sealing.later(61)
    assert [ref_of(run) for run in sealing.sealer().look()] == [REF]
    second = last_seal(sealing.ledger, REF)
    assert second is not None
    assert second.place == f"{first.path}.r2"
    assert verdict(Path(second.place)) == (True, True, [])
    assert predicate_of(Path(second.place))["previous"] == first.digest
    assert documents_in(Path(second.place))["energy.json"]["tasks_total"]["value_uj"] == "1234572"
    assert {path.name: path.read_bytes() for path in first.path.iterdir()} == before


def test_a_failure_that_is_noted_after_the_runs_end_is_no_reason_for_a_new_revision(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    first = sealing.sealer().seal(REF)
    sealing.ledger.put_incident(Incident("PREFECT_API", "no artifact", wall_ns=NOW, run_id=REF.run_id))
    assert sealing.sealer().seal(REF) == first


def test_a_look_waits_until_a_run_has_settled(sealing: Sealing) -> None:
    record_run(sealing.ledger, run=replace(RUN, ended_wall_ns=NOW))
    assert sealing.sealer(settle_s=10).look() == []
    sealing.later(10)
    assert len(sealing.sealer(settle_s=10).look()) == 1


def test_decisions_of_a_run_under_way_are_signed_before_it_ends(sealing: Sealing) -> None:
    record_run(sealing.ledger, run=replace(RUN, state="running", ended_wall_ns=None))
    assert sealing.sealer().look() == []
    (bundle,) = sealing.root.glob("[!.]*")
    assert verdict(bundle) == (False, False, ["INCOMPLETE"])
    assert len(entries_of(bundle)) == 3
    sealing.ledger.put_decision(decision(7))
    sealing.ledger.put_decision(decision(-7))  # late: behind what was logged
    assert sealing.sealer().look() == []
    assert [entry["decided"]["wall_ns"] for entry in entries_of(bundle)][3:] == [str(T0 + 7)]
    sealing.ledger.put_run(RUN)
    assert len(sealing.sealer().look()) == 1
    assert verdict(bundle) == (True, True, [])
    times = [int(entry["decided"]["wall_ns"]) - T0 for entry in entries_of(bundle)]
    assert times == [0, 1, 2, 7, -7]


def test_a_run_under_way_that_decided_nothing_leaves_no_directory(sealing: Sealing) -> None:
    record_run(sealing.ledger, 0, replace(RUN, state="running", ended_wall_ns=None))
    assert sealing.sealer().look() == []
    assert not sealing.root.exists()


def test_a_run_known_only_by_its_tasks_is_sealed_once_it_is_silent_for_a_day(sealing: Sealing) -> None:
    record_run(sealing.ledger, run=replace(RUN, state=UNSEEN_RUN, ended_wall_ns=None))
    assert sealing.sealer().look() == []
    sealing.later(86_400)
    assert len(sealing.sealer().look()) == 1
    assert documents_in(next(sealing.root.glob("[!.]*")))["run.json"]["gaps"][0]["code"] == "RUN_UNSEEN"


def test_one_bad_run_never_stops_the_others_and_is_told(sealing: Sealing) -> None:
    bad = replace(RUN, run_id="bad", started_wall_ns=T0 - S)
    for run in (bad, RUN):
        record_run(sealing.ledger, run=run)
    with sealing.ledger.transaction() as tx:
        tx.change("UPDATE tasks SET body = '{' WHERE run_id = 'bad'")
    assert [run.run_id for run in sealing.sealer().look()] == [REF.run_id]
    (noted,) = sealing.noted
    assert "bad" in noted
    assert "LEDGER_CORRUPT" in noted
    assert sealing.sealer().look() == []
    assert len(sealing.noted) == 1  # not tried again at once


class Away:
    """A ledger that is away."""

    def __getattr__(self, name: str) -> Any:
        raise LedgerError("LEDGER_UNREACHABLE", "nobody answers", "see that it runs")


def test_a_ledger_that_is_away_is_told_and_tried_again(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    away: Any = Away()
    assert sealing.sealer(ledger=away).look() == []
    assert "LEDGER_UNREACHABLE" in sealing.noted[0]
    assert len(sealing.sealer().look()) == 1


def test_a_run_that_another_sealer_holds_is_left_to_it_until_its_process_is_gone(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    other = Segment("elsewhere", "boot", 1, 1)
    assert take_turn(sealing.ledger, REF, other, LEASE_S, lambda _: None)
    with pytest.raises(BundleError) as caught:
        sealing.seal()
    assert caught.value.code == "BUNDLE_BUSY"
    assert sealing.sealer().look() == []
    gone = replace(sealing.sealer()._holder, pid=2**22 + 1)
    with sealing.ledger.transaction() as tx:
        tx.change("UPDATE sealing SET holder = :holder", holder=gone.id)
    assert verdict(sealing.seal())[0]


def test_a_turn_that_ran_out_is_anothers_and_the_slow_sealer_gives_up(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    slow = sealing.sealer(lease_s=0.0)
    taken = sealing.sealer()
    advanced = slow._written

    def stolen(ref: RunRef, run: RunRecord) -> Any:
        with sealing.ledger.transaction() as tx:
            tx.change("UPDATE sealing SET holder = 'other/b/1/1/0'")
        return advanced(ref, run)

    slow._written = stolen  # type: ignore[method-assign]
    with pytest.raises(BundleError):
        slow.seal(REF)
    with sealing.ledger.transaction() as tx:
        tx.change("UPDATE sealing SET holder = '', lease_until_wall_ns = 0")
    assert verdict(taken.seal(REF).path) == (True, True, [])


def test_a_bundle_whose_sealer_died_before_it_could_say_so_is_found_and_not_made_again(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    first = sealing.sealer().seal(REF)
    with sealing.ledger.transaction() as tx:
        tx.change("DELETE FROM seals")
        tx.change("UPDATE sealing SET look_wall_ns = 0")
    assert len(sealing.sealer().look()) == 1
    seal = last_seal(sealing.ledger, REF)
    assert seal is not None
    assert (seal.digest, seal.place, seal.revision) == (first.digest, str(first.path), 1)


def test_a_bundle_that_anothers_key_signed_is_not_taken_for_ours(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    sealing.sealer(key=SigningKey.generate()).seal(REF)
    with sealing.ledger.transaction() as tx:
        tx.change("DELETE FROM seals")
    assert sealing.sealer().seal(REF).revision == 2


def test_without_a_key_a_bundle_says_that_nobody_signed_it(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    sealed = sealing.sealer(key=None).seal(REF)
    assert sealed.keyid is None
    assert verdict(sealed.path)[0] is False
    assert sealing.sealer(key=None).seal(REF) == sealed


def test_a_run_that_nobody_recorded_cannot_be_sealed(sealing: Sealing) -> None:
    with pytest.raises(InputError) as caught:
        sealing.seal()
    assert caught.value.code == "RUN_NOT_FOUND"


def test_runs_of_the_same_id_in_two_flows_have_bundles_of_their_own(sealing: Sealing) -> None:
    other = replace(RUN, flow="../../etc")
    for run in (RUN, other):
        record_run(sealing.ledger, run=run)
    assert len(sealing.sealer().look()) == 2
    bundles = list(sealing.root.glob("[!.]*"))
    assert len(bundles) == 2
    assert all(path.parent == sealing.root and verdict(path)[0] for path in bundles)


def test_violations_say_what_when_and_by_how_much(sealing: Sealing) -> None:
    record_run(sealing.ledger, 0)
    broken = {"id": "power_cap", "pool": "home", "value": 500.0, "limit": 400.0, "unit": "W", "slack": -100.0}
    request = {"task": {"deadline": "2026-09-21T14:13:25Z"}, "budget": {"limit_j": 40.0, "spent_j": 41.0}}
    sealing.ledger.put_decision(decision(1, request=request, answer={"violations": [broken], "utilisation": 1.5}))
    found = documents_in(sealing.seal())["violations.json"]
    assert problems("violations", found) == []
    by_code = {each["code"]: each for each in found["violations"]}
    assert set(by_code) == {"power_cap", "BUDGET_EXCEEDED", "DEADLINE_MISSED", "SOURCE_GAP"}
    assert by_code["power_cap"]["figures"] == {
        name: broken[name] for name in ("pool", "value", "limit", "unit", "slack")
    }
    assert by_code["power_cap"]["when"]["wall_ns"] == str(T0 + 1)
    assert by_code["BUDGET_EXCEEDED"]["figures"]["utilisation"] == 1.5
    assert by_code["DEADLINE_MISSED"]["figures"]["late_s"] == 6.0
    assert all(each["remedy"] and each["task"] == "train" for each in found["violations"])


def test_numbers_that_json_has_no_exact_form_for_are_kept_as_texts_or_unknown(sealing: Sealing) -> None:
    record_run(sealing.ledger, 0)
    odd = {"big": 2**63 - 1, "nan": float("nan"), "deep": [[[1]]]}
    ledger: Ledger = sealing.ledger
    ledger.put_decision(decision(1, request=odd))
    bundle = sealing.seal()
    assert entries_of(bundle)[0]["request"] == {"big": str(2**63 - 1), "nan": None, "deep": [[[1]]]}
    assert verdict(bundle)[0]


def test_several_hosts_each_have_their_account(sealing: Sealing) -> None:
    record_run(sealing.ledger)
    sealing.ledger.put_account(REF, account("node-2"))
    windows = documents_in(sealing.seal())["energy.json"]["windows"]
    assert [each["host"] for each in windows] == ["node-1", "node-2"]
