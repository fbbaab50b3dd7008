"""Maps whose items share task runs: for each item what Prefect's own map gives, and fewer task runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect import allow_failure, flow, task, unmapped
from prefect.cache_policies import INPUTS
from prefect.context import TaskRunContext
from prefect.futures import PrefectFutureList, as_completed, wait
from prefect.runtime import task_run
from support import artifacts_of, burn, only_run, ref, tasks_of

from tao_flows import runtime, tao_flow, tao_task
from tao_flows.errors import InputError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.prefect import energy_of
from tao_flows.records import HostAccount, RunKey, RunRecord, Segment, TaskRecord, TaskState

FLOWS = Path(__file__).parent / "flows"


def told(future: Any) -> Any:
    try:
        return future.result()
    except BaseException as error:  # noqa: BLE001 - it is what is told
        return f"{type(error).__name__}: {error}"


def in_flow(act: Callable[[], Any], **options: Any) -> Any:
    """What ``act`` gives in a flow."""

    def body() -> Any:
        return act()

    return tao_flow(body, validate_parameters=False, **options)()


class Counted:
    """A function that fails where it is told to, and counts its calls by item."""

    def __init__(self, always: set[int] = frozenset(), first: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.always, self.first = always, first
        self.calls: Counter[int] = Counter()

    def go(self, x: int) -> int:
        self.calls[x] += 1
        if x in self.always or (x in self.first and self.calls[x] == 1):
            raise ValueError(f"no {x}")
        return x * 2

    def sync(self) -> Callable[..., Any]:
        def work(x: int, by: int = 1) -> int:
            return self.go(x) * by

        return work

    def coroutine(self) -> Callable[..., Any]:
        async def work(x: int, by: int = 1) -> int:
            await asyncio.sleep(0)
            return self.go(x) * by

        return work


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 7),
    size=st.integers(2, 4),
    always=st.sets(st.integers(0, 6), max_size=2),
    first=st.sets(st.integers(0, 6), max_size=2),
    retries=st.integers(0, 2),
    kind=st.sampled_from(["sync", "coroutine"]),
    persists=st.booleans(),
)
def test_batched_and_plain_maps_agree(
    ledger: Ledger, count: int, size: int, always: set[int], first: set[int], retries: int, kind: str, persists: bool
) -> None:
    assert ledger

    def one_side(make: Callable[..., Any]) -> Any:
        counted = Counted(always, first)
        options = {"retries": retries, "persist_result": True if persists else None}
        futures = make(getattr(counted, kind)(), **options).map(list(range(count)), by=3)
        results = [told(future) for future in futures]
        states = [(each.state.type, each.state.name, each.state.message) for each in futures]
        return results, states, counted.calls

    def batched(fn: Any, **options: Any) -> Any:
        return tao_task(fn, coalesce=size, **options)

    # A flow run each: in one, what is persisted by the one side would be found by the other.
    plain, in_batches = in_flow(lambda: one_side(task)), in_flow(lambda: one_side(batched))
    assert in_batches == plain


def test_nothing_changes_unasked(ledger: Ledger) -> None:
    in_flow(lambda: tao_task(Counted().sync()).map([1, 2, 3]).result())
    assert sorted(record.key.task for record in tasks_of(ledger)) == ["work"] * 3


def test_a_batch_is_a_task_run_named_by_its_range_and_fails_with_the_names_of_its_failed_items(ledger: Ledger) -> None:
    def act() -> Any:
        futures = tao_task(Counted(always={4}).sync(), coalesce=3).map(range(7))
        wait(futures)
        return [future.delivery.task_runs[0].state for future in futures[::3]]

    first, second, third = in_flow(act)
    assert (first.type.value, second.type.value, third.type.value) == ("COMPLETED", "FAILED", "COMPLETED")
    assert second.message == "1 of 3 items failed: item 4 (x=4, by=1): ValueError: no 4"
    records = sorted(tasks_of(ledger), key=lambda record: record.task_label)
    assert [(each.task_label, each.size, str(each.state)) for each in records] == [
        ("work[0-2]", 3.0, "completed"), ("work[3-5]", 3.0, "failed"), ("work[6-6]", 1.0, "completed"),
    ]  # fmt: skip


def test_items_get_their_share_of_their_batchs_joules(ledger: Ledger) -> None:
    def work(cpu_s: float) -> float:
        return burn(cpu_s)

    def act() -> Any:
        futures = tao_task(work, coalesce=3).map([0.05, 0.0, 0.15])
        wait(futures)
        return [energy_of(future) for future in futures], energy_of(futures[0].task_run_id)

    (small, none, large), whole = in_flow(act)
    assert none.value_j < small.value_j < large.value_j
    assert large.value_j / small.value_j == pytest.approx(3, rel=0.3)
    assert small.value_j + none.value_j + large.value_j == pytest.approx(whole.value_j, rel=0.05)
    assert {figure.quality for figure in (small, none, large)} == {Quality.ESTIMATED}
    rows = json.loads(str(artifacts_of(only_run(ledger).run_id)["tao-tasks-body"][-1]))
    assert [row["map_index"] for row in rows] == [None, 0, 1, 2]  # the batch, and its items
    assert [row["energy_j"] for row in rows[1:]] == [small.value_j, none.value_j, large.value_j]


def test_items_and_task_runs_find_each_others_cached_results(ledger: Ledger, tmp_path: Path) -> None:
    counted = Counted()
    cached = tao_task(
        counted.sync(), cache_policy=INPUTS, cache_expiration=timedelta(minutes=5), result_storage_key=None
    )  # fmt: skip
    salt = time.time_ns()

    def act() -> Any:
        one = cached.map([1, 2], by=salt).result()
        two = cached.with_options(coalesce=3).map([1, 2, 3, 4], by=salt)
        wait(two)
        three = cached.map([3, 4], by=salt)
        wait(three)
        return one, two.result(), [future.state.name for future in two], [each.state.name for each in three]

    one, two, names, last = in_flow(act)
    assert one == two[:2]
    assert names == ["Cached", "Cached", "Completed", "Completed"]
    assert last == ["Cached", "Cached"]
    assert counted.calls == {1: 1, 2: 1, 3: 1, 4: 1}


def test_delays_of_items_that_are_tried_again_run_side_by_side_and_conditions_count(ledger: Ledger) -> None:
    counted = Counted(first={0, 1, 2, 3})
    asked: list[str] = []

    def worth_it(_task: Any, _run: Any, state: Any) -> bool:
        asked.append(str(state.data))
        return "no 3" not in str(state.data)

    retried = tao_task(counted.sync(), coalesce=9, retries=1, retry_delay_seconds=0.7, retry_condition_fn=worth_it)

    def act() -> Any:
        begun_s = time.monotonic()
        return [told(future) for future in retried.map(range(5))], time.monotonic() - begun_s

    results, took_s = in_flow(act)
    assert results == [0, 2, 4, "ValueError: no 3", 8]
    assert sorted(asked) == ["no 0", "no 1", "no 2", "no 3"]
    assert counted.calls == {0: 2, 1: 2, 2: 2, 3: 1, 4: 1}
    assert took_s < 2.0  # three delays one after another are more


def test_time_outs_and_hooks_are_each_items_own(ledger: Ledger) -> None:
    seen: list[str] = []

    async def nap(s: float) -> float:
        await asyncio.sleep(s)
        return s

    def hook(_task: Any, run: Any, state: Any) -> None:
        seen.append(f"{run.name} {state.name}")

    napping = tao_task(nap, coalesce=3, timeout_seconds=0.4, on_completion=[hook], on_failure=[hook])

    def act() -> Any:
        futures = napping.map([0.0, 9.0, 0.01])
        return [told(future) for future in futures], futures[1].state

    results, state = in_flow(act)
    assert (results[0], results[2]) == (0.0, 0.01)
    assert results[1].startswith("TimeoutError") or results[1].startswith("TaskRunTimeoutError")
    assert (state.name, state.message) == ("TimedOut", "Task run exceeded timeout of 0.4 second(s)")
    assert sorted(seen) == ["nap-0 Completed", "nap-1 TimedOut", "nap-2 Completed"]


def test_items_futures_are_futures_like_any(ledger: Ledger) -> None:
    slow = tao_task(lambda x: time.sleep(0.3) or x, name="slow", coalesce=2)

    def act() -> dict[str, Any]:
        futures = slow.map([1, 2, 3])
        assert isinstance(futures, PrefectFutureList)
        done, not_done = wait(futures, timeout=0.05)
        with pytest.raises(TimeoutError, match="did not complete within 0.01 seconds"):
            futures[0].result(timeout=0.01)
        add = tao_task(lambda x, y: x + y, name="add", coalesce=2)
        late = task(lambda: 1, name="late").submit(wait_for=[futures[2]])
        return {
            "at once": (len(done), len(not_done)),
            "as completed": sorted(future.result() for future in as_completed(futures)),
            "results": futures.result(),
            "one": task(lambda x: x + 1, name="one").submit(futures[1]).result(),
            "chained": add.map(futures, unmapped(futures[0])).result(),
            "late": late.result(),
            "states": [state.name for state in slow.map([4, 5], return_state=True)],
        }

    assert in_flow(act) == {
        "at once": (0, 3), "as completed": [1, 2, 3], "results": [1, 2, 3], "one": 3, "chained": [2, 3, 4],
        "late": 1, "states": ["Completed", "Completed"],
    }  # fmt: skip


def test_what_waits_for_a_failed_item_is_not_ready_and_its_neighbours_are(ledger: Ledger) -> None:
    failing = Counted(always={1}).sync()

    def act(first: Any, second: Any, third: Any) -> Any:
        futures = first.map([0, 1, 2])
        after = second.map(futures)
        whatever = third.map([allow_failure(future) for future in futures])
        results = [told(future) for future in after], [str(told(future)) for future in whatever]
        return *results, [future.state.name for future in after], told(second.map([5], wait_for=[futures[1]])[0])

    def plus(x: Any) -> str:
        return f"{x}+"

    plain = in_flow(lambda: act(task(failing), task(plus), task(plus)))
    ours = [tao_task(each, coalesce=3) for each in (failing, plus, plus)]
    assert in_flow(lambda: act(*ours)) == plain
    assert plain[2] == ["Completed", "NotReady", "Completed"]


def test_an_item_sees_a_task_run_of_its_own(ledger: Ledger) -> None:
    def look(number: int) -> tuple[Any, ...]:
        context = TaskRunContext.get()
        assert context is not None
        return task_run.id, task_run.run_count, task_run.parameters, context.task.name, number

    found = in_flow(lambda: tao_task(look, coalesce=5).map(range(3)).result())
    assert len({each[0] for each in found}) == 3
    assert [each[1:] for each in found] == [(1, {"number": number}, "look", number) for number in range(3)]


def test_what_is_mapped_is_prefects_to_say(ledger: Ledger) -> None:
    def work(x: int, y: list[int], *rest: int, z: str = "z", **named: int) -> Any:
        return x, y, rest, z, named

    def act(mapped: Any) -> Any:
        several = mapped.map([1, 2], unmapped([5, 6]), z="ab", n=[7, 8]).result()
        errors = [told_of(lambda: mapped.map(1, 2)), told_of(lambda: mapped.map([1], [1, 2]))]
        return several, errors, mapped.map([], unmapped([1])).result()

    def told_of(act: Callable[[], Any]) -> str:
        try:
            return str(act())
        except Exception as error:  # noqa: BLE001 - it is what is told
            return type(error).__name__

    plain = in_flow(lambda: act(task(work)))
    assert in_flow(lambda: act(tao_task(work, coalesce=2))) == plain
    assert plain[1] == ["MappingMissingIterable", "MappingLengthMismatch"]


@pytest.mark.parametrize("wanted", [0, -1, 1.5, "always", None])
def test_a_malformed_option_is_told_where_it_is_written(wanted: Any) -> None:
    with pytest.raises(InputError, match="coalesce"):
        tao_task(coalesce=wanted)


def test_the_option_outlives_with_options() -> None:
    made = tao_task(Counted().sync(), coalesce=7)
    assert made.with_options(retries=2).tao_coalesce == 7
    assert made.with_options(coalesce=False).tao_coalesce is False


def test_items_that_wait_for_something_else_run_side_by_side_after_a_moment(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    at_once: list[int] = [0]
    most: list[int] = []

    def nap(x: int) -> int:
        at_once[0] += 1
        most.append(at_once[0])
        time.sleep(0.4)
        at_once[0] -= 1
        return x

    assert in_flow(lambda: tao_task(nap, coalesce=True).map(range(16)).result()) == list(range(16))
    # Two batches of 8, one for each CPU, until a second has passed.
    assert max(most[:4]) <= 2 < max(most)


def inverted(ledger: Ledger, task_name: str) -> None:
    """Leaves six runs in which the engine took 99 % of the joules, 1 J for an item of 10 mJ."""
    segment = Segment("host", "boot", 1, 1)
    figure = Figure(10_000, 10_000, 10_000, Quality.ESTIMATED, ("estimate",))
    measured = Measurement("item", 0, 0.01, CpuTime(0.01, "perf", covers_children=True), figure, (), Account(), ())
    for number in range(6):
        key = RunKey("prefect", "default", "body", f"earlier-{number}", task_name, "item", 1)
        now_ns = time.time_ns() - 10**9
        ledger.put_run(RunRecord("prefect", "default", "body", key.run_id, "completed", now_ns, segment))
        ledger.put_task(
            TaskRecord(key, segment, TaskState.COMPLETED, now_ns, pool="local", ended_wall_ns=now_ns + 1,
                       measurement=measured)
        )  # fmt: skip
        account = HostAccount("host", Account(tasks_uj=10_000, overhead_uj=1_000_000), 1.0, "w")
        ledger.put_account(RunRef("prefect", "default", key.run_id, "body"), account)


@pytest.mark.parametrize(("mode", "items", "expected"), [("enforce", 40, 2), ("enforce", 10, 10), ("observe", 40, 40)])
def test_unasked_batches_are_for_many_items_where_the_engine_takes_more_than_the_work_and_may_be_changed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, mode: str, items: int, expected: int
) -> None:
    inverted(ledger, "work")
    monkeypatch.setenv("TAO_FLOWS_MODE", mode)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    runtime.forget()
    results = in_flow(lambda: tao_task(Counted().sync()).map(range(items)).result())
    assert results == [2 * x for x in range(items)]
    run = next(run for run in ledger.runs() if not run.run_id.startswith("earlier"))
    # 1 J is a tenth of the whole with 9 J of items: 900 of them, but for the two CPUs.
    assert len(ledger.tasks(ref(run))) == expected


def run_script(how: str, folder: Path, ledger_path: Path, *more: str) -> tuple[dict[str, Any] | None, str]:
    env = {**os.environ, "TAO_FLOWS_LEDGER": str(ledger_path), "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results")}
    command = [sys.executable, str(FLOWS / "batches.py"), how, str(folder), *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert "Timeout (0:04:00)" not in done.stderr, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return (json.loads(lines[0].removeprefix("FOUND ")) if lines else None), done.stdout + done.stderr


def left_over(folder: Path) -> list[Path]:
    return [path for path in (folder / "results").rglob("*") if path.is_file() and "tao-flows-batches" in path.parts]


def test_other_processes_give_the_same_and_one_items_trouble_is_its_own(
    ledger: Ledger, ledger_path: Path, tmp_path: Path
) -> None:
    found, output = run_script("process", tmp_path, ledger_path)
    assert found is not None, output[-4000:]
    assert found["items"] == found["plain"]
    told_of = ["ValueError: item 1", "TypeError: cannot pickle '_thread.lock' object"]
    assert found["items"] == [0, *told_of, 30, 40, 50, 60, 70]
    assert (found["after"][0], found["after"][3:], found["one"]) == (1, [31, 41, 51, 61, 71], 31)
    assert all(value >= 0 for value in found["energy"])
    assert left_over(tmp_path) == []


def test_a_killed_process_of_a_pool_loses_no_finished_item(ledger: Ledger, ledger_path: Path, tmp_path: Path) -> None:
    found, output = run_script("process-killed", tmp_path, ledger_path)
    assert found is not None, output[-4000:]
    assert found["items"][3:5] == [30, 40]  # 4 had finished in the batch that died
    assert [text.split(":")[0] for text in found["items"][5:]] == ["BrokenProcessPool"] * 3
    assert found["runs"] == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("how", ["process-killed-retried", "dask-killed"])
def test_what_a_killed_process_had_left_is_run_again_and_nothing_else(
    ledger: Ledger, ledger_path: Path, tmp_path: Path, how: str
) -> None:
    found, output = run_script(how, tmp_path, ledger_path)
    assert found is not None, output[-4000:]
    assert found["items"] == [0, *found["items"][1:3], 30, 40, 50, 60, 70]
    assert [text.split(":")[0] for text in found["items"][1:3]] == ["ValueError", "TypeError"]
    assert found["runs"][3:] == [1, 1, 2, 1, 1]
    assert left_over(tmp_path) == []


def test_a_flow_run_that_was_killed_goes_on_with_what_was_left(
    ledger: Ledger, ledger_path: Path, tmp_path: Path
) -> None:
    found, output = run_script("thread-killed", tmp_path, ledger_path)
    assert found is None, output[-4000:]
    assert left_over(tmp_path) != []
    (run,) = ledger.runs()
    again, output = run_script("thread-killed", tmp_path, ledger_path, run.run_id)
    assert again is not None, output[-4000:]
    assert again["items"] == [0, "ValueError: item 1", "lock", 30, 40, 50, 60, 70]
    # Item 1 had failed, and a lock cannot be kept.
    assert again["runs"][3:6] == [1, 1, 2]
    assert left_over(tmp_path) == []


def test_a_flow_that_is_not_ours_maps_in_batches_too(ledger: Ledger) -> None:
    batched = tao_task(Counted().sync(), coalesce=2)

    @flow
    def theirs() -> list[int]:
        return batched.map([1, 2, 3]).result()

    assert theirs() == [2, 4, 6]
