"""``@tao_task`` on a real engine: what a user of ``prefect.task`` expects, and a record of every try."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from prefect import flow, tags, task
from prefect.cache_policies import INPUTS
from prefect.tasks import Task
from support import burn, only_run, ref, tasks_of

from tao_flows import tao_flow, tao_task
from tao_flows.errors import InputError
from tao_flows.figures import Quality
from tao_flows.ledger.base import Ledger
from tao_flows.prefect import TaoTask, energy_of
from tao_flows.records import TaskState


def test_a_sync_task_gives_its_result_and_one_record_with_its_own_cpu_time(ledger: Ledger) -> None:
    @tao_task
    def work(x: int) -> int:
        burn(0.2)
        return x + 1

    @tao_flow
    def main() -> int:
        return work(1)

    assert main() == 2
    (record,) = tasks_of(ledger)
    assert record.state is TaskState.COMPLETED
    assert record.measurement is not None
    assert record.measurement.cpu_s == pytest.approx(0.2, rel=0.05, abs=0.02)
    assert record.measurement.energy.quality is Quality.ESTIMATED
    assert record.measurement.energy.value_j is not None
    assert record.measurement.energy.low_j == pytest.approx(record.measurement.energy.value_j / 2, rel=1e-3)


def test_an_async_task_is_charged_for_its_own_steps_only(ledger: Ledger) -> None:
    truth: dict[int, float] = {}

    @tao_task
    async def work(n: int) -> int:
        spent = 0.0
        for _ in range(3):
            spent += burn(0.02 * n)
            await asyncio.sleep(0.005)
        truth[n] = spent
        return n

    @tao_flow
    async def main() -> list[int]:
        return list(await asyncio.gather(*(work(n) for n in range(1, 6))))

    assert asyncio.run(main()) == [1, 2, 3, 4, 5]
    charged = sorted(record.measurement.cpu_s for record in tasks_of(ledger) if record.measurement)
    assert charged == pytest.approx(sorted(truth.values()), rel=0.05, abs=0.01)


def test_generators_of_both_kinds_yield_as_before_and_are_charged_for_their_steps(ledger: Ledger) -> None:
    @tao_task
    def numbers(n: int):
        for i in range(n):
            burn(0.03)
            yield i

    @tao_task
    async def letters(text: str):
        for letter in text:
            burn(0.03)
            yield letter

    @tao_flow
    async def main() -> tuple[list[int], list[str]]:
        found = []
        for i in numbers(3):
            burn(0.1)  # the consumer's, not the generator's
            found.append(i)
        return found, [letter async for letter in letters("ab")]

    assert asyncio.run(main()) == ([0, 1, 2], ["a", "b"])
    (record,) = tasks_of(ledger, "numbers")
    assert record.measurement is not None
    assert record.measurement.cpu_s == pytest.approx(0.09, rel=0.15)
    (record,) = tasks_of(ledger, "letters")
    assert record.measurement is not None
    assert record.measurement.cpu_s == pytest.approx(0.06, rel=0.15)


def test_a_generator_that_is_left_early_has_completed(ledger: Ledger) -> None:
    @tao_task
    def numbers():
        yield from range(100)

    @tao_flow
    def main() -> int:
        for number in numbers():
            return number
        return -1

    assert main() == 0
    (record,) = tasks_of(ledger)
    assert record.state is TaskState.COMPLETED


def test_submitted_and_mapped_tasks_are_told_apart_on_their_threads(ledger: Ledger) -> None:
    truth: dict[str, float] = {}

    @tao_task(task_run_name="work-{n}")
    def work(n: int) -> int:
        truth[f"work-{n}"] = burn(0.05 * n)
        return n * n

    @tao_flow
    def main() -> list[int]:
        mapped = work.map([1, 2, 3])
        return [*mapped.result(), work.submit(4).result()]

    assert main() == [1, 4, 9, 16]
    charged = {r.task_label: r.measurement.cpu_s for r in tasks_of(ledger) if r.measurement}
    assert charged == pytest.approx(truth, rel=0.05, abs=0.01)


def test_a_task_called_by_a_task_is_not_charged_twice(ledger: Ledger) -> None:
    @tao_task
    def inner() -> None:
        burn(0.2)

    @tao_task
    def outer() -> None:
        burn(0.1)
        inner()

    @tao_flow
    def main() -> None:
        outer()

    main()
    (outer_record,) = tasks_of(ledger, "outer")
    (inner_record,) = tasks_of(ledger, "inner")
    assert inner_record.measurement is not None
    assert outer_record.measurement is not None
    assert inner_record.measurement.cpu_s == pytest.approx(0.2, rel=0.1)
    assert outer_record.measurement.cpu_s < 0.2


def test_each_try_is_a_record(ledger: Ledger) -> None:
    tries: list[int] = []

    @tao_task(retries=2)
    def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return "done"

    @tao_flow
    def main() -> str:
        return flaky()

    assert main() == "done"
    records = tasks_of(ledger)
    assert [(r.key.try_number, r.state) for r in records] == [
        (1, TaskState.FAILED),
        (2, TaskState.FAILED),
        (3, TaskState.COMPLETED),
    ]
    assert len({r.key.instance for r in records}) == 1


def test_a_failure_reaches_the_flow_as_it_was_raised(ledger: Ledger) -> None:
    class Mine(RuntimeError): ...

    @tao_task
    def broken() -> None:
        raise Mine("as it was")

    @tao_flow
    def main() -> None:
        broken()

    with pytest.raises(Mine, match="as it was"):
        main()
    assert only_run(ledger).state == "failed"
    assert [record.state for record in tasks_of(ledger)] == [TaskState.FAILED]


def test_a_cache_hit_is_neither_metered_nor_decided(ledger: Ledger, tmp_path: Path) -> None:
    calls: list[int] = []

    @tao_task(cache_policy=INPUTS, result_storage_key=None, persist_result=True)
    def work(x: int, salt: str) -> int:
        calls.append(x)
        return x

    @tao_flow
    def main() -> list[int]:
        return [work(1, str(tmp_path)), work(1, str(tmp_path))]

    assert main() == [1, 1]
    assert calls == [1]
    assert len(tasks_of(ledger)) == 1
    assert len(ledger.decisions(ref(only_run(ledger)))) == 1


def test_two_tasks_of_one_body_and_equal_inputs_do_not_share_a_cache_key(ledger: Ledger) -> None:
    @tao_task(persist_result=True)
    def double(x: int) -> int:
        return x * 2

    @tao_task(persist_result=True)
    def square(x: int) -> int:
        return x * x

    @tao_flow
    def main() -> tuple[int, int]:
        return double(3), square(3)

    assert main() == (6, 9)


def test_a_timeout_covers_the_users_function_and_not_our_work_before_it(ledger: Ledger, ledger_path: Path) -> None:
    @tao_task
    def first() -> None: ...

    @tao_task(timeout_seconds=1)
    def in_time() -> str:
        time.sleep(0.8)
        return "done"

    @tao_flow
    def main() -> str:
        first()  # everything is built and the ledger is there
        blocker = sqlite3.connect(ledger_path, isolation_level=None, check_same_thread=False)
        blocker.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.45, blocker.rollback)
        release.start()
        try:
            return in_time()
        finally:
            release.join()
            blocker.close()

    assert main() == "done"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_task_that_takes_too_long_is_timed_out(ledger: Ledger, kind: str) -> None:
    if kind == "sync":

        @tao_task(timeout_seconds=0.2)
        def slow() -> None:
            time.sleep(5)

        @tao_flow
        def main() -> str:
            return slow(return_state=True).name

        name = main()
    else:

        @tao_task(timeout_seconds=0.2)
        async def slow() -> None:
            await asyncio.sleep(5)

        @tao_flow
        async def main() -> str:
            return (await slow(return_state=True)).name

        name = asyncio.run(main())
    assert name == "TimedOut"
    (record,) = tasks_of(ledger)
    assert record.state is TaskState.FAILED
    assert record.measurement is not None
    assert record.measurement.wall_s < 3


def test_a_timeout_error_of_the_users_own_is_passed_on(ledger: Ledger) -> None:
    @tao_task(timeout_seconds=5)
    def reads() -> None:
        raise TimeoutError("the database did not answer")

    @tao_flow
    def main() -> None:
        reads()

    with pytest.raises(TimeoutError, match="the database did not answer"):
        main()


def test_a_bare_call_of_the_function_is_left_alone(ledger: Ledger) -> None:
    @tao_task(budget="nobody-configured-this")
    def work(x: int) -> int:
        return x + 1

    @tao_task
    def caller() -> int:
        return work.fn(41)

    @tao_flow
    def main() -> int:
        return caller()

    assert work.fn(1) == 2
    assert main() == 42
    assert [record.key.task for record in tasks_of(ledger)] == ["caller"]


def test_a_task_outside_any_flow_is_a_run_of_its_own(ledger: Ledger) -> None:
    @tao_task
    def alone() -> str:
        return "done"

    assert alone() == "done"
    run = only_run(ledger)
    assert (run.flow, run.state) == ("alone", "completed")
    assert [record.state for record in tasks_of(ledger)] == [TaskState.COMPLETED]


def test_a_metered_task_in_a_plain_flow_is_recorded(ledger: Ledger) -> None:
    @tao_task
    def work() -> None: ...

    @flow
    def plain() -> None:
        work()

    plain()
    assert only_run(ledger).flow == "plain"
    assert [record.state for record in tasks_of(ledger)] == [TaskState.COMPLETED]


def test_methods_class_methods_and_static_methods_are_tasks(ledger: Ledger) -> None:
    class Model:
        def __init__(self, bias: int) -> None:
            self.bias = bias

        @tao_task
        def predict(self, x: int) -> int:
            return x + self.bias

        @tao_task
        @staticmethod
        def scale(x: int) -> int:
            return x * 10

    @tao_flow
    def main() -> tuple[int, int]:
        return Model(5).predict(1), Model.scale(2)

    assert main() == (6, 20)
    assert {record.key.task for record in tasks_of(ledger)} == {"predict", "scale"}


def test_an_existing_task_is_taken_over_as_it_is(ledger: Ledger) -> None:
    @task(name="mine", tags={"etl"}, retries=3, retry_delay_seconds=7, timeout_seconds=9, log_prints=True, version="2")
    def work(x: int) -> int:
        """What it does."""
        return x

    taken = tao_task(work, team="a")
    assert isinstance(taken, Task)
    assert isinstance(taken, TaoTask)
    for attribute in ("name", "tags", "retries", "retry_delay_seconds", "log_prints", "version", "description"):
        assert getattr(taken, attribute) == getattr(work, attribute), attribute
    assert (taken.task_key, taken.source_code, taken.__doc__) == (work.task_key, work.source_code, work.__doc__)
    assert taken.tao_options.timeout_s == 9
    assert work.timeout_seconds == 9, "the user's own task is left as it was"


def test_with_options_changes_prefects_options_and_ours_and_keeps_the_rest(ledger: Ledger) -> None:
    @tao_task(team="a", owner="o", budget="40 J", timeout_seconds=9, retries=1)
    def work(x: int) -> int:
        return x

    changed = work.with_options(name="other", retries=5, team="b", tags={"t"})
    assert isinstance(changed, TaoTask)
    assert (changed.name, changed.retries, changed.tags) == ("other", 5, {"t"})
    assert (changed.tao_options.who.team, changed.tao_options.who.owner) == ("b", "o")
    assert changed.tao_options.timeout_s == 9
    assert changed.tao_options.budget == work.tao_options.budget
    assert changed.task_key == work.task_key
    assert (work.name, work.tao_options.who.team) == ("work", "a")

    @tao_flow
    def main() -> int:
        return changed(3)

    assert main() == 3
    (record,) = tasks_of(ledger)
    assert (record.key.task, record.who.team, record.who.owner, record.budget) == ("other", "b", "o", "task:other")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"deadline": "soon"}, "deadline: 'soon' is not a duration"),
        ({"budget": "-1 J"}, "is not an energy"),
        ({"budget": -1}, "is negative"),
        ({"budget": "0 J"}, "limit is 0 J"),
        ({"deferrable": "yes"}, "deferrable: 'yes' is not True or False"),
        ({"team": 3}, "team: 3 is not a text"),
        ({"allowed_zones": "SE"}, "is not a list of texts"),
    ],
)
def test_a_malformed_option_is_refused_where_it_is_written(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        tao_task(**options)
    assert caught.value.remedy


def test_an_option_that_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="deadlin"):
        tao_task(lambda: None, deadlin="2h")


def test_who_it_belongs_to_comes_from_task_flow_and_configuration(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAO_FLOWS_OWNER", "platform")
    monkeypatch.setenv("TAO_FLOWS_TEAM", "nobody")

    @tao_task(model_id="m-1", tao_tags=["gpu"])
    def work() -> None: ...

    @tao_flow(team="a", tao_tags=["nightly"])
    def main() -> None:
        work()

    with tags("cluster:west", "team:overruled", "plain"):
        main()
    (record,) = tasks_of(ledger)
    assert (record.who.team, record.who.owner, record.who.model_id) == ("a", "platform", "m-1")
    assert record.who.cluster == "west"
    assert set(record.who.tags) == {"nightly", "gpu", "cluster:west", "team:overruled", "plain"}
    assert only_run(ledger).who.team == "a"


def test_the_energy_of_a_finished_task_can_be_asked_for_in_the_flow(ledger: Ledger) -> None:
    @tao_task
    def work() -> None:
        burn(0.05)

    @tao_flow
    def main() -> tuple[float | None, float | None]:
        future = work.submit()
        future.wait()
        return energy_of(future).value_j, energy_of("no such task").value_j

    known_j, unknown_j = main()
    (record,) = tasks_of(ledger)
    assert record.measurement is not None
    assert known_j == record.measurement.energy.value_j
    assert unknown_j is None


def test_each_task_logs_one_line_at_the_level_asked_for(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAO_FLOWS_LOG_LEVEL", "WARNING")

    @tao_task
    def work() -> None: ...

    @tao_flow
    def main() -> None:
        work()

    main()
    lines = [record for record in caplog.records if record.getMessage().startswith("tao-flows:")]
    assert [record.levelname for record in lines] == ["WARNING"]
    assert "estimated" in lines[0].getMessage()
