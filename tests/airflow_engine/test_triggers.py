"""Thousands of tasks that wait in one event loop, as a triggerer has them: a real ledger, real signals, real triggers."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_plugin import settings
from airflow_plugin.facts import Facts
from airflow_plugin.triggers import TaoTrigger, deferral_from_json, deferral_json
from airflow_plugin.waitroom import WaitRoom
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral, RunKey, Segment, TaskRecord, TaskState
from tao_flows.units import NS_PER_S

pytestmark = pytest.mark.airflow

HOUR_S = 3_600


class Waiting:
    """A ledger, a signal that is to fall, and tasks that wait for it."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger, self.deferrals = folder, ledger, DeferralStore(ledger)
        self.now_ns = time.time_ns()
        (folder / "pools.toml").write_text('[[pools]]\npool_id = "default"\nzone = "DE"\n', encoding="utf-8")
        self.settings()
        self.signal(falls=True)
        self._ran()

    def settings(self, mode: str = "enforce") -> None:
        pools, carbon = self.folder / "pools.toml", self.folder / "carbon.csv"
        text = f'mode = "{mode}"\npools = "{pools}"\n[signals.carbon.DE]\ncsv = "{carbon}"\n'
        self._write("tao-flows.toml", text)

    def signal(self, *, falls: bool) -> None:
        """Tells of a fall in an hour; or that there is none."""
        rows = [(-300, 500.0), (HOUR_S, 50.0 if falls else 500.0), (3 * HOUR_S, 500.0)]
        at = self.now_ns // NS_PER_S
        lines = [f"{datetime.fromtimestamp(at + s, timezone.utc).isoformat()},DE,{value}" for s, value in rows]
        self._write("carbon.csv", "\n".join(["time,zone,value", *lines]))

    def facts(self, index: int = -1, latest_s: float = 2 * HOUR_S) -> Facts:
        options = {"deferrable": True, "max_defer": max(0.0, latest_s)}
        return Facts("etl", "run-1", "load", index, 1, "default", self.now_ns, options=options)

    def waits(self, index: int = -1, *, start_s: float = HOUR_S + 300, latest_s: float = 2 * HOUR_S) -> Deferral:
        """Has a task wait, as far as the ledger knows."""
        start_ns, latest_ns = (self.now_ns + round(s * NS_PER_S) for s in (start_s, latest_s))
        key = self.facts(index).key("default")
        deferral = Deferral(key, "default", self.now_ns, start_ns, latest_ns, "it falls")
        assert self.deferrals.plan(deferral)
        return deferral

    def trigger(self, index: int = -1, payload: Any = None, **planned: float) -> TaoTrigger:
        facts = self.facts(index, planned.get("latest_s", 2 * HOUR_S))
        return TaoTrigger(facts.to_json(), deferral_json(self.waits(index, **planned)), payload)

    def state_of(self, index: int) -> str:
        found = self.deferrals.state_of(self.facts(index).key("default"))
        assert found is not None
        return found.state

    def states(self) -> set[str]:
        with self.ledger.transaction(write=False) as tx:
            return {state for (state,) in tx.execute("SELECT state FROM deferrals")}

    def _write(self, name: str, text: str) -> None:
        # Replaced at once: nobody reads half of it.
        (self.folder / "new").write_text(text, encoding="utf-8")
        os.replace(self.folder / "new", self.folder / name)

    def _ran(self) -> None:
        figure = Figure(*[10**9] * 3, Quality.ATTRIBUTED, ("rapl",))
        measured = Measurement("load", 0, 60.0, CpuTime(1.0, "perf", covers_children=True), figure, (), Account())
        began_ns = self.now_ns - HOUR_S * NS_PER_S
        self.ledger.put_task(
            TaskRecord(
                key=RunKey("airflow", "default", "etl", "run-0", "load", "-1", 1),
                segment=Segment("host", "boot", 1, 1),
                state=TaskState.COMPLETED,
                started_wall_ns=began_ns,
                pool="default",
                ended_wall_ns=began_ns + 60 * NS_PER_S,
                measurement=measured,
            )
        )


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> Waiting:
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(tmp_path / "tao-flows.toml"))
    monkeypatch.setattr(WaitRoom, "poll_s", 0.2)
    return Waiting(tmp_path, ledger)


async def fired(trigger: TaoTrigger) -> Any:
    """What a trigger says when it fires; it fires once."""
    (event,) = [event async for event in trigger.run()]
    return event.payload


async def after(first: Callable[[], object], *triggers: TaoTrigger, settle_s: float = 1.5) -> list[Any]:
    """What triggers say after something has happened; before, none of them says anything."""
    tasks = [asyncio.create_task(fired(trigger)) for trigger in triggers]
    done, _ = await asyncio.wait(tasks, timeout=settle_s)
    assert not done
    first()
    return await asyncio.wait_for(asyncio.gather(*tasks), 30.0)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60.0))


def test_what_is_stored_of_a_wait_comes_back_whole_encrypted_and_small(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.trigger import Trigger

    trigger = waiting.trigger(payload={"status": "done"})
    stored = Trigger.from_object(trigger)
    assert stored.classpath == "airflow_plugin.triggers.TaoTrigger"
    assert TaoTrigger(**stored.kwargs).serialize() == trigger.serialize()
    assert deferral_from_json(trigger.deferral) == waiting.waits()
    assert len(stored.encrypted_kwargs) < 2_000


def test_a_trigger_fires_at_the_planned_start_and_the_ledger_knows_that_the_task_starts(waiting: Waiting) -> None:
    run(fired(waiting.trigger(start_s=2.0, latest_s=60.0)))
    assert time.time_ns() >= waiting.now_ns + 2 * NS_PER_S
    assert waiting.states() == {"started"}


def test_the_event_is_that_of_the_author_where_the_task_resumes(waiting: Waiting) -> None:
    assert run(fired(waiting.trigger(payload={"status": "done"}, start_s=0.0, latest_s=60.0))) == {"status": "done"}


def test_a_latest_start_that_has_passed_fires_though_nothing_is_wired_yet(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    wired = threading.Event()
    monkeypatch.setattr(settings.runtime, "current", lambda *_a, **_k: wired.wait() and None)

    async def scenario() -> None:
        await fired(waiting.trigger(start_s=-2.0, latest_s=-1.0))
        wired.set()

    run(scenario())


def test_where_tao_flows_cannot_be_wired_nothing_waits(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", "nonsense://x")
    run(fired(waiting.trigger()))


def test_a_release_has_it_fire(waiting: Waiting) -> None:
    run(after(lambda: waiting.deferrals.release("all", said_by="ops", reason="now"), waiting.trigger()))
    assert waiting.states() == {"started"}


def test_a_change_of_mode_has_all_fire(waiting: Waiting) -> None:
    run(after(lambda: waiting.settings(mode="observe"), *(waiting.trigger(index) for index in range(20))))
    assert waiting.states() == {"started"}


def test_a_change_of_the_signal_has_hundreds_fire_within_a_poll_or_two(waiting: Waiting) -> None:
    triggers = [waiting.trigger(index) for index in range(300)]
    run(after(lambda: waiting.signal(falls=False), *triggers, settle_s=4.0))
    assert waiting.states() == {"started"}


def test_without_a_ledger_it_fires_by_the_latest_start(waiting: Waiting, tmp_path: Path) -> None:
    trigger = waiting.trigger(latest_s=6.0)

    def lose() -> None:
        (tmp_path / "ledger.db").write_bytes(b"this is no database" * 500)

    run(after(lose, trigger, settle_s=1.0))


def test_a_wait_that_the_ledger_has_closed_already_fires_since_airflow_still_holds_it(waiting: Waiting) -> None:
    trigger = waiting.trigger()
    waiting.deferrals.started(trigger_key(trigger))
    run(fired(trigger))


def test_a_triggerer_that_stops_starts_nothing_and_another_goes_on_with_the_wait(waiting: Waiting) -> None:
    trigger = waiting.trigger(start_s=5.0, latest_s=60.0)

    async def stopped() -> None:
        task = asyncio.create_task(fired(trigger))
        await asyncio.wait([task], timeout=1.0)

    run(stopped())
    assert waiting.states() == {"waiting"}
    run(fired(TaoTrigger(**trigger.serialize()[1])))
    assert time.time_ns() >= waiting.now_ns + 5 * NS_PER_S
    assert waiting.states() == {"started"}


def test_what_a_user_takes_away_while_it_waits_is_gone_and_the_rest_waits_on(waiting: Waiting) -> None:
    triggers = [waiting.trigger(index) for index in range(2)]

    async def cancelled() -> None:
        taken, left = (asyncio.create_task(fired(trigger)) for trigger in triggers)
        await asyncio.sleep(1.0)
        taken.cancel()
        await asyncio.wait([left], timeout=5.0)
        assert not left.done()

    run(cancelled())
    assert [waiting.state_of(index) for index in range(2)] == ["gone", "waiting"]


class Told:
    """The supervisor of a triggerer: it tells of the states of tasks."""

    def __init__(self, **states: str | None) -> None:
        self.states = states

    def send(self, asked: Any) -> Any:
        if not self.states:
            raise OSError("the API server does not answer")
        return SimpleNamespace(task_states=dict.fromkeys(asked.run_ids, self.states))


@pytest.mark.parametrize(
    ("told", "states"),
    [
        # Another triggerer has taken the first over: it was silent for too long.
        (Told(load_0="deferred", load_1=None), ["waiting", "gone"]),
        (Told(load_0="scheduled"), ["gone", "gone"]),
        (Told(), ["waiting", "waiting"]),
    ],
)
def test_what_another_triggerer_has_taken_over_waits_on(
    told: Told, states: list[str], waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_plugin import _compat

    monkeypatch.setattr(_compat, "supervisor_channel", lambda: told)
    triggers = [waiting.trigger(index) for index in range(3)]

    async def cancelled() -> None:
        *taken, left = (asyncio.create_task(fired(trigger)) for trigger in triggers)
        await asyncio.sleep(1.0)
        for each in taken:
            each.cancel()
        await asyncio.wait([left], timeout=4.0)

    run(cancelled())
    assert [waiting.state_of(index) for index in range(2)] == states


def test_what_was_cleared_and_waits_again_is_gone_as_the_try_that_it_was(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_plugin import _compat

    monkeypatch.setattr(_compat, "supervisor_channel", lambda: Told(load="deferred"))
    trigger, left, before = waiting.trigger(), waiting.trigger(0), waiting.waits()
    again = replace(before, key=replace(before.key, try_number=2))
    assert waiting.deferrals.plan(again)

    async def cancelled() -> None:
        taken, other = asyncio.create_task(fired(trigger)), asyncio.create_task(fired(left))
        await asyncio.sleep(1.0)
        taken.cancel()
        await asyncio.wait([other], timeout=4.0)

    run(cancelled())
    found = waiting.deferrals.states_of([before.key, again.key])
    assert [found[key].state for key in (before.key, again.key)] == ["gone", "waiting"]


def test_what_a_later_version_has_stored_is_no_reason_to_fail_the_task(waiting: Waiting) -> None:
    stored = waiting.trigger(payload={"rows": 3}).serialize()[1]
    key = {**stored["deferral"]["key"], "region": "eu"}
    later = TaoTrigger(**{**stored, "deferral": {**stored["deferral"], "key": key}, "why": "it falls"})
    assert run(fired(later)) == {"rows": 3}


def test_one_poll_asks_the_ledger_for_all(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    states_of = DeferralStore.states_of

    def counted(self: DeferralStore, keys: Any) -> Any:
        asked.append(len(keys))
        return states_of(self, keys)

    monkeypatch.setattr(DeferralStore, "states_of", counted)
    run(after(lambda: waiting.settings(mode="off"), *(waiting.trigger(index) for index in range(50))))
    assert max(asked) == 50
    assert len(asked) < 20


def test_options_that_cannot_be_read_do_not_keep_a_task(waiting: Waiting) -> None:
    facts = replace(waiting.facts(), options={"deferrable": True, "max_defer": "soon"})
    run(fired(TaoTrigger(facts.to_json(), deferral_json(waiting.waits()))))


def trigger_key(trigger: TaoTrigger) -> RunKey:
    return deferral_from_json(trigger.deferral).key
