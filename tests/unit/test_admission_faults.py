"""What may go wrong while tasks are decided on: none fails or is held up for it, and it is told once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from place import ASK, KEY, NOW_NS, PATIENT, TEAM, Wired, in_a_thread, iso, number

from tao_flows.admission import LEDGER_S, RECONSIDER_S, Admission, Ask, Verdict
from tao_flows.budget import EnergyBudget
from tao_flows.config import TaoConfig, load_config
from tao_flows.ledger import schema
from tao_flows.ledger.spool import spool_of
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.units import NS_PER_S
from tao_flows.waiting import POLL_S, Waitlist, Why

ROOM_S = 1.0
"""For a machine that others use, too."""


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    wired = Wired(tmp_path)
    yield wired
    wired.safe.close()
    wired.ledger.close()


def timed(admission: Admission, ask: Ask, config: TaoConfig) -> tuple[Verdict, float]:
    begun_s = time.monotonic()
    return admission.ask(ask, config), time.monotonic() - begun_s


@pytest.mark.parametrize("kind", ["budget", "wait"])
def test_a_ledger_that_another_writer_holds_delays_tasks_by_seconds_in_all_and_none_fails(
    wired: Wired, kind: str
) -> None:
    wired.ran(3.6e6)
    config = wired.configured(wired.falling() + '[budgets.team]\nlimit = "1 MWh"\n')
    admission = wired.admission(config)
    ask = replace(ASK, budget="team") if kind == "budget" else PATIENT
    admission.ask(number(ask, 0), config)
    with wired.locked(), ThreadPoolExecutor(40) as threads:
        found = list(threads.map(lambda n: timed(admission, number(ask, n), config), range(1, 41)))
        # Those that come next do not find it out for themselves.
        _, next_s = timed(admission, number(ask, 41), config)
    assert {verdict.action for verdict, _ in found} == {"run"}
    assert max(seconds for _, seconds in found) < LEDGER_S + 2 * 0.5 + ROOM_S
    assert next_s < 0.5
    assert {code for code, _ in wired.told()} <= {"LEDGER_BUSY"}
    assert all(verdict.decision is not None for verdict, _ in found)


def test_a_writer_that_lets_go_in_time_costs_no_reservation(wired: Wired) -> None:
    wired.ran(100.0)
    config = wired.configured(TEAM)
    admission = wired.admission(config)
    admission.ask(replace(number(ASK, 0), budget="team"), config)
    with ThreadPoolExecutor(1) as threads:
        with wired.locked():
            asked = threads.submit(admission.ask, replace(ASK, budget="team"), config)
            time.sleep(0.6)
        assert asked.result().action == "run"
    assert admission.budgets.standings(["team"])[0].reserved_uj == 200_000_000


@pytest.mark.parametrize("form", ["spool", "ingest"])
def test_a_ledger_that_only_takes_records_is_decided_without_and_told_once(tmp_path: Path, form: str) -> None:
    url = f"spool://{tmp_path}/spool" if form == "spool" else "http://127.0.0.1:9/"
    wired = Wired(tmp_path, url)
    config = wired.configured(wired.falling() + TEAM)
    admission = wired.admission(config)
    verdicts = [admission.ask(replace(number(PATIENT, n), budget="team"), config) for n in range(20)]
    assert {(verdict.mode, verdict.action, verdict.budgets) for verdict in verdicts} == {("enforce", "run", ("team",))}
    assert all(verdict.decision is not None for verdict in verdicts)
    assert [each for each in wired.told() if each[0] == "LEDGER_WRITE_ONLY"] == [("LEDGER_WRITE_ONLY", 1)]
    wired.safe.close()


def test_a_task_that_asks_for_nothing_is_not_told_that_a_ledger_shows_nothing(tmp_path: Path) -> None:
    wired = Wired(tmp_path, f"spool://{tmp_path}/spool")
    assert wired.admission().ask(ASK, wired.config).decision is not None
    assert wired.told() == []
    wired.safe.close()


def test_a_ledger_that_waits_to_be_migrated_stops_no_task_and_gets_its_records_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.db"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        SqliteLedger(path).migrate()
    wired = Wired(tmp_path, f"sqlite:///{path}")
    config = wired.configured(TEAM)
    verdict = wired.admission(config).ask(replace(ASK, budget="team"), config)
    assert (verdict.action, verdict.budgets) == ("run", ("team",))
    assert "LEDGER_OLDER" in {code for code, _ in wired.told()}
    wired.safe.close()
    spool = spool_of(f"sqlite:///{path}")
    assert spool is not None
    assert spool.has_records()
    SqliteLedger(path).migrate()
    wired.use(f"sqlite:///{path}")
    wired.safe.flush(5.0)
    with wired.safe.transaction(write=False) as tx:
        assert tx.execute("SELECT count(*) FROM decisions") == [(1,)]
    wired.safe.close()


def test_a_budget_that_is_set_while_tasks_run_holds_for_the_next_of_them(wired: Wired) -> None:
    wired.ran(100.0)
    config = wired.configured(TEAM)
    admission = wired.admission(config)
    assert admission.ask(replace(number(ASK, 1), budget="team"), config).action == "run"
    admission.budgets.put(EnergyBudget("team", 50.0, ceiling_j=50.0))
    for _ in range(2):
        wired.clock.advance(5.0)
        assert admission.ask(replace(number(ASK, 2), budget="team"), config).action == "deny"
    # What a file says anew is a person's word, too.
    config = wired.configured(TEAM.replace("2 kJ", "3 kJ"))
    assert admission.ask(replace(number(ASK, 3), budget="team"), config).action == "run"
    assert admission.budgets.all()[0].ceiling_j == 3_000.0


def test_a_budget_that_is_dropped_while_tasks_run_is_none(wired: Wired) -> None:
    wired.ran(100.0)
    admission = wired.admission()
    admission.budgets.put(EnergyBudget("all", 1_000.0, scope="global"))
    assert admission.ask(number(ASK, 1), wired.config).budgets == ("all",)
    admission.budgets.drop("all")
    verdict = admission.ask(number(ASK, 2), wired.config)
    assert (verdict.action, verdict.decision is None) == ("run", False)
    assert wired.told() == []


def test_a_power_cap_weighs_the_watts_of_a_task_and_not_all_of_its_joules(wired: Wired) -> None:
    wired.ran(30_000.0, seconds=600.0)  # 50 W
    config = wired.configured('[budgets.rack]\npower = "80 W"\nceiling = "80 W"\n')
    admission = wired.admission(config)
    verdicts = [admission.ask(replace(number(ASK, n), budget="rack"), config) for n in range(2)]
    assert [verdict.action for verdict in verdicts] == ["run", "deny"]
    assert verdicts[0].decision is not None
    assert verdicts[0].decision.answer["utilisation"] == pytest.approx(50 / 80, rel=0.01)


def test_a_pools_file_that_is_broken_is_told_once_and_the_pools_stay_as_they_were(wired: Wired) -> None:
    wired.ran(3.6e6)
    config = wired.configured(wired.falling())
    admission = wired.admission(config)
    assert admission.ask(number(PATIENT, 1), config).action == "defer"
    (wired.directory / "pools.toml").write_text("[[pools", encoding="utf-8")
    assert [admission.ask(number(PATIENT, n), config).action for n in range(2, 6)] == ["defer"] * 4
    ((code, count),) = wired.told()
    assert (code, count) == ("BAD_TOML", 1)


def waiting(wired: Wired) -> tuple[TaoConfig, Admission, Verdict]:
    wired.ran(3.6e6)
    config = wired.configured(wired.falling())
    admission = wired.admission(config)
    verdict = admission.ask(PATIENT, config)
    assert verdict.deferral is not None
    return config, admission, verdict


@pytest.mark.parametrize("switch", ['mode = "off"', 'mode = "observe"', "rules"])
def test_mode_off_lets_go_of_all_that_waits(wired: Wired, switch: str) -> None:
    _, admission, verdict = waiting(wired)
    path = wired.directory / "tao-flows.toml"
    text = path.read_text(encoding="utf-8")

    def settings() -> TaoConfig:
        return load_config(cwd=wired.directory, env={"HOME": str(wired.directory)}).config

    assert verdict.deferral is not None
    deferral = verdict.deferral
    thread, said = in_a_thread(lambda: admission.wait(PATIENT, settings, deferral))
    time.sleep(0.2)
    assert not said
    rule = '\n[[rules]]\nname = "*"\nmode = "off"\n'
    path.write_text(text + rule if switch == "rules" else text.replace('mode = "enforce"', switch), encoding="utf-8")
    thread.join(POLL_S + ROOM_S)
    assert said == [Why.RECONSIDERED]
    assert admission.deferrals.open() == []


def test_a_signal_whose_file_is_gone_ends_a_wait(wired: Wired) -> None:
    config, admission, verdict = waiting(wired)
    assert verdict.deferral is not None
    reconsider = admission.reconsider(PATIENT, lambda: config, verdict.deferral)
    (wired.directory / "carbon.csv").unlink()
    wired.clock.advance(RECONSIDER_S)
    assert reconsider() is None


def test_deciding_anew_on_what_waits_reserves_nothing(wired: Wired) -> None:
    wired.ran(3.6e6)
    config = wired.configured(wired.falling() + '[budgets.team]\nlimit = "10 kWh"\n')
    admission = wired.admission(config)
    ask = replace(PATIENT, budget="team")
    verdict = admission.ask(ask, config)
    assert verdict.deferral is not None
    reconsider = admission.reconsider(ask, lambda: config, verdict.deferral)
    (wired.directory / "carbon.csv").unlink()
    wired.clock.advance(RECONSIDER_S)
    assert reconsider() is None
    # Whoever waits may be cancelled just now: then nobody would give it back.
    assert admission.budgets.standings(["team"])[0].reserved_uj == 0


def test_what_a_full_budget_would_deny_now_goes_on_waiting_for_its_start(wired: Wired) -> None:
    wired.ran(3.6e6)
    config = wired.configured(wired.falling() + '[budgets.team]\nlimit = "2 kWh"\nceiling = "2 kWh"\nwindow = "1h"\n')
    admission = wired.admission(config)
    ask = replace(PATIENT, budget="team")
    verdict = admission.ask(ask, config)
    assert verdict.deferral is not None
    reconsider = admission.reconsider(ask, lambda: config, verdict.deferral)
    assert admission.ask(replace(number(ask, 2), can_defer=False), config).action == "run"
    wired.clock.advance(RECONSIDER_S)
    assert reconsider() == verdict.deferral


def test_a_plan_at_the_latest_start_is_kept_though_no_slot_begins_there_any_more(wired: Wired) -> None:
    wired.ran(3.6e6)
    config = wired.configured(wired.falling().replace("places = 3", "places = 1"))
    path = wired.directory / "carbon.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text(
        "\n".join([*lines[:2], lines[2].replace(lines[2].split(",")[0], iso(NOW_NS // NS_PER_S + 7_200))]), "utf-8"
    )
    admission = wired.admission(config)
    verdict = admission.ask(PATIENT, config)
    assert verdict.deferral is not None
    assert verdict.deferral.start_wall_ns == verdict.deferral.latest_wall_ns
    reconsider = admission.reconsider(PATIENT, lambda: config, verdict.deferral)
    wired.clock.advance(RECONSIDER_S + 1.0)
    assert reconsider() == verdict.deferral


def test_what_lapsed_by_another_hosts_clock_and_waits_here_still_starts(wired: Wired) -> None:
    _, admission, verdict = waiting(wired)
    assert verdict.deferral is not None
    over: list[Why] = []
    waitlist = Waitlist(admission.deferrals, wired.clock)
    waitlist.add(verdict.deferral, over.append)
    assert len(admission.deferrals.lapse(grace_s=-1e6)) == 1
    waitlist.poll()
    assert over == [Why.LATEST]


def test_what_a_killed_process_left_waiting_is_closed_by_the_next_that_waits(wired: Wired) -> None:
    config, admission, _ = waiting(wired)
    old = replace(PATIENT, key=replace(KEY, instance="killed"), ready_wall_ns=NOW_NS)
    verdict = admission.ask(old, config)
    assert verdict.deferral is not None
    past = replace(verdict.deferral, start_wall_ns=1, latest_wall_ns=2)
    admission.deferrals.plan(past)
    waitlist = Waitlist(admission.deferrals, wired.clock)
    waitlist.poll()
    assert [each.key.instance for each in admission.deferrals.open()] == [KEY.instance]


def test_where_no_thread_can_be_started_nothing_waits_and_nothing_fails(
    wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, admission, verdict = waiting(wired)
    assert verdict.deferral is not None

    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(2):
        assert admission.wait(PATIENT, lambda: config, verdict.deferral) is Why.RECONSIDERED
    assert admission.deferrals.open() == []


def test_a_thousand_tasks_at_once_fill_every_place_and_no_slot_twice(wired: Wired) -> None:
    wired.ran(3.6e6)
    config = wired.configured(wired.falling())
    (wired.directory / "pools.toml").write_text('[[pools]]\npool_id = "home"\nzone = "DE"\nplaces = 10\n', "utf-8")
    admission = wired.admission(config)
    with ThreadPoolExecutor(32) as threads:
        found = list(threads.map(lambda n: admission.ask(number(PATIENT, n), config), range(250)))
    slots = [each.deferral.start_wall_ns // (300 * NS_PER_S) for each in found if each.deferral is not None]
    assert max(map(slots.count, set(slots))) == 10
    assert len(slots) == len(set(slots)) * 10
    assert wired.told() == []
