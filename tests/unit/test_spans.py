"""Spans: whose CPU second it was, when pieces of code share a thread."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from tao_flows.codeclock import CodeClock
from tao_flows.errors import SourceError
from tao_flows.spans import CpuSpan, Stepped, inside_span, stepped_async_generator, stepped_generator
from tao_flows.telemetry import perf
from tao_flows.telemetry.perf import TaskClock

BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


def burn(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


class Ticks:
    """A CPU clock that moves when told to."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def has_perf() -> bool:
    try:
        TaskClock().close()
    except SourceError:
        return False
    return True


needs_perf = pytest.mark.skipif(not has_perf(), reason="perf events are refused here")


def test_a_span_inside_another_takes_its_seconds_out_of_the_outer_one() -> None:
    ticks = Ticks()
    outer, inner, innermost = CpuSpan(ticks), CpuSpan(ticks), CpuSpan(ticks)
    with outer:
        ticks.s += 1
        with inner:
            ticks.s += 10
            with innermost:
                ticks.s += 100
            ticks.s += 20
        ticks.s += 2
    assert (outer.cpu_s, inner.cpu_s, innermost.cpu_s) == (3, 30, 100)


def test_a_span_adds_up_the_steps_it_is_entered_for() -> None:
    ticks = Ticks()
    span = CpuSpan(ticks)
    for _ in range(3):
        with span:
            ticks.s += 2
        ticks.s += 50
    assert span.cpu_s == 6


def test_a_span_that_is_left_by_an_exception_keeps_its_seconds_and_lets_it_pass() -> None:
    ticks = Ticks()
    outer, inner = CpuSpan(ticks), CpuSpan(ticks)

    def fail() -> None:
        ticks.s += 4
        raise KeyError

    with pytest.raises(KeyError), outer, inner:
        fail()
    assert (outer.cpu_s, inner.cpu_s) == (0, 4)
    assert not inside_span()


def test_a_clock_that_runs_backwards_gives_no_negative_seconds() -> None:
    ticks = Ticks()
    span = CpuSpan(ticks)
    with span:
        ticks.s -= 5
    assert span.cpu_s == 0


def test_a_span_is_seen_on_its_own_thread_alone() -> None:
    seen = []
    with CpuSpan():
        assert inside_span()
        thread = threading.Thread(target=lambda: seen.append(inside_span()))
        thread.start()
        thread.join()
    assert seen == [False]
    assert not inside_span()


def test_a_stepped_coroutine_gives_its_result_and_its_exception() -> None:
    async def work(value: int) -> int:
        await asyncio.sleep(0)
        if value < 0:
            raise ValueError(value)
        return value + 1

    async def main() -> None:
        assert await Stepped(work(1), CpuSpan()) == 2
        with pytest.raises(ValueError, match="-1"):
            await Stepped(work(-1), CpuSpan())

    asyncio.run(main())


def test_a_stepped_coroutine_is_timed_while_it_runs_and_not_while_it_waits() -> None:
    async def work() -> None:
        burn(0.03)
        await asyncio.sleep(0.02)
        burn(0.03)

    async def other() -> None:
        await asyncio.sleep(0.001)
        burn(0.1)

    async def main() -> float:
        span = CpuSpan()
        await asyncio.gather(Stepped(work(), span), other())
        return span.cpu_s

    assert asyncio.run(main()) == pytest.approx(0.06, rel=0.1)


def test_cancelling_a_stepped_coroutine_reaches_it_and_it_may_clean_up_or_refuse() -> None:
    log: list[str] = []

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("cancelled")
            await asyncio.sleep(0)
            log.append("cleaned up")
            raise
        return "never"

    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "refused"
        return "never"

    async def main() -> None:
        async def stepped(coroutine: Any) -> Any:
            return await Stepped(coroutine, CpuSpan())

        task = asyncio.create_task(stepped(work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel("why")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        task = asyncio.create_task(stepped(stubborn()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "refused"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(Stepped(work(), CpuSpan()), timeout=0.01)

    asyncio.run(main())
    assert log == ["cancelled", "cleaned up"] * 2


def test_a_stepped_coroutine_that_is_dropped_is_closed() -> None:
    log = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            log.append("closed")

    steps = Stepped(work(), CpuSpan()).__await__()
    assert next(steps) is None
    assert log == []
    steps.close()
    assert log == ["closed"]
    assert not inside_span()


def test_a_stepped_coroutine_shares_the_context_of_whoever_awaits_it() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def work() -> str:
        given = variable.get()
        await asyncio.sleep(0)
        variable.set("from within")
        return given

    async def main() -> tuple[str, str]:
        variable.set("from outside")
        return await Stepped(work(), CpuSpan()), variable.get()

    assert asyncio.run(main()) == ("from outside", "from within")


def test_coroutines_inside_one_another_are_each_charged_for_their_own_code() -> None:
    async def inner() -> None:
        burn(0.04)
        await asyncio.sleep(0)
        burn(0.04)

    async def outer(span: CpuSpan) -> None:
        burn(0.02)
        await Stepped(inner(), span)
        burn(0.02)

    async def main() -> tuple[float, float]:
        outside, inside = CpuSpan(), CpuSpan()
        await Stepped(outer(inside), outside)
        return outside.cpu_s, inside.cpu_s

    outside_s, inside_s = asyncio.run(main())
    assert outside_s == pytest.approx(0.04, rel=0.1, abs=0.003)
    assert inside_s == pytest.approx(0.08, rel=0.1)


def test_ten_coroutines_on_one_loop_are_each_charged_what_they_used() -> None:
    truths = [0.0] * 10

    async def work(number: int) -> None:
        for _ in range(4):
            before_s = time.thread_time()
            burn(0.002 * (number + 1))
            truths[number] += time.thread_time() - before_s
            await asyncio.sleep(0)

    async def main() -> list[float]:
        spans = [CpuSpan() for _ in range(10)]
        await asyncio.gather(*(Stepped(work(number), span) for number, span in enumerate(spans)))
        return [span.cpu_s for span in spans]

    for charged_s, truth_s in zip(asyncio.run(main()), truths, strict=True):
        assert charged_s == pytest.approx(truth_s, rel=0.05, abs=0.003)


def conversation(log: list[Any]) -> Generator[Any, Any, str]:
    """Says what it is sent, answers a KeyError, and ends on "stop"."""
    said: Any = "ready"
    try:
        while said != "stop":
            try:
                said = yield said
            except KeyError as error:
                said = f"caught {error.args[0]}"
    finally:
        log.append("closed")
    return "result"


def test_a_stepped_generator_is_the_same_generator_to_its_consumer() -> None:
    log: list[Any] = []
    steps = stepped_generator(conversation(log), CpuSpan())
    assert next(steps) == "ready"
    assert steps.send("a") == "a"
    assert steps.throw(KeyError("k")) == "caught k"
    assert steps.send("b") == "b"
    with pytest.raises(StopIteration) as stop:
        steps.send("stop")
    assert stop.value.value == "result"
    assert log == ["closed"]


def test_a_stepped_generator_passes_on_its_value_exceptions_and_its_end() -> None:
    def consumer() -> Generator[Any, Any, None]:
        result = yield from stepped_generator(conversation([]), CpuSpan())
        yield f"got {result}"

    steps = consumer()
    next(steps)
    assert steps.send("stop") == "got result"
    failing = stepped_generator(conversation([]), CpuSpan())
    next(failing)
    with pytest.raises(ZeroDivisionError):
        failing.throw(ZeroDivisionError())
    assert list(stepped_generator((i for i in range(3)), CpuSpan())) == [0, 1, 2]


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_stepped_generator_that_is_closed_or_dropped_closes_the_users(how: str) -> None:
    log: list[Any] = []
    steps = stepped_generator(conversation(log), CpuSpan())
    next(steps)
    if how == "close":
        steps.close()
    else:
        del steps
        gc.collect()
    assert log == ["closed"]
    assert not inside_span()


def test_a_stepped_generator_is_timed_while_it_runs_and_not_while_its_consumer_does() -> None:
    def work() -> Generator[int, None, None]:
        for i in range(3):
            burn(0.02)
            yield i

    span = CpuSpan()
    for _ in stepped_generator(work(), span):
        assert not inside_span()
        burn(0.03)
    assert span.cpu_s == pytest.approx(0.06, rel=0.1)


async def async_conversation(log: list[Any]) -> AsyncGenerator[Any, Any]:
    said: Any = "ready"
    try:
        while said != "stop":
            try:
                said = yield said
                await asyncio.sleep(0)
            except KeyError as error:
                said = f"caught {error.args[0]}"
    finally:
        await asyncio.sleep(0)
        log.append("closed")


def test_a_stepped_async_generator_is_the_same_generator_to_its_consumer() -> None:
    log: list[Any] = []

    async def main() -> None:
        steps = stepped_async_generator(async_conversation(log), CpuSpan())
        assert await steps.__anext__() == "ready"
        assert await steps.asend("a") == "a"
        assert await steps.athrow(KeyError("k")) == "caught k"
        assert await steps.asend("b") == "b"
        with pytest.raises(StopAsyncIteration):
            await steps.asend("stop")

    asyncio.run(main())
    assert log == ["closed"]


def test_a_stepped_async_generator_that_is_closed_or_fails_closes_the_users() -> None:
    log: list[Any] = []

    async def main() -> None:
        closed = stepped_async_generator(async_conversation(log), CpuSpan())
        await closed.__anext__()
        await closed.aclose()
        assert log == ["closed"]
        failing = stepped_async_generator(async_conversation(log), CpuSpan())
        await failing.__anext__()
        with pytest.raises(ZeroDivisionError):
            await failing.athrow(ZeroDivisionError())
        assert log == ["closed"] * 2
        with pytest.raises(StopAsyncIteration):
            await failing.__anext__()

    asyncio.run(main())


def test_a_stepped_async_generator_is_timed_while_it_runs_and_not_while_its_consumer_does() -> None:
    async def work() -> AsyncGenerator[int, None]:
        for i in range(3):
            burn(0.01)
            await asyncio.sleep(0)
            burn(0.01)
            yield i

    async def main() -> float:
        span = CpuSpan()
        async for _ in stepped_async_generator(work(), span):
            assert not inside_span()
            burn(0.03)
        return span.cpu_s

    assert asyncio.run(main()) == pytest.approx(0.06, rel=0.1)


@needs_perf
def test_code_that_keeps_its_thread_is_charged_for_the_threads_and_processes_it_starts() -> None:
    clock = CodeClock(stepped=False)
    before_s = time.thread_time()
    with clock.span:
        burn(0.05)
        thread = threading.Thread(target=burn, args=(0.1,))
        thread.start()
        thread.join()
        child = subprocess.run([sys.executable, "-S", "-c", BURN.format(0.15)], check=True)
        own_s = time.thread_time() - before_s
    cpu = clock.stop()
    assert child.returncode == 0
    assert (cpu.source, cpu.covers_children) == ("perf", True)
    # The child's interpreter starts up before it burns; what that takes is its own too.
    assert own_s + 0.25 <= cpu.cpu_s <= own_s + 0.25 + 0.3


@needs_perf
def test_code_is_not_charged_for_threads_and_processes_that_others_started() -> None:
    begin, end = threading.Event(), threading.Event()

    def other() -> None:
        begin.wait()
        burn(0.1)
        subprocess.run([sys.executable, "-S", "-c", BURN.format(0.1)], check=True)
        end.set()

    threading.Thread(target=other).start()
    clock = CodeClock(stepped=False)
    before_s = time.thread_time()
    with clock.span:
        burn(0.02)
        begin.set()
        end.wait()
        own_s = time.thread_time() - before_s
    assert clock.stop().cpu_s == pytest.approx(own_s, abs=0.02)


@needs_perf
def test_two_clocks_in_two_threads_tell_their_children_apart() -> None:
    charged: dict[float, float | None] = {}

    def work(cpu_s: float) -> None:
        clock = CodeClock(stepped=False)
        with clock.span:
            thread = threading.Thread(target=burn, args=(cpu_s,))
            thread.start()
            thread.join()
        charged[cpu_s] = clock.stop().cpu_s

    threads = [threading.Thread(target=work, args=(cpu_s,)) for cpu_s in (0.05, 0.15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cpu_s in (0.05, 0.15):
        assert charged[cpu_s] == pytest.approx(cpu_s, rel=0.15, abs=0.01)


def test_code_that_gives_its_thread_away_is_charged_for_its_steps_on_the_thread_alone() -> None:
    clock = CodeClock(stepped=True)
    with clock.span:
        burn(0.03)
    burn(0.05)
    cpu = clock.stop()
    assert (cpu.source, cpu.covers_children) == ("thread-clock-steps", False)
    assert cpu.cpu_s == pytest.approx(0.03, rel=0.1)


def test_where_perf_is_refused_the_thread_alone_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise SourceError("PERF_PARANOID", "the kernel keeps perf events from users")

    monkeypatch.setattr(perf, "_open", refuse)
    clock = CodeClock(stepped=False)
    with clock.span:
        burn(0.03)
    cpu = clock.stop()
    assert (cpu.source, cpu.covers_children) == ("thread-clock", False)
    assert cpu.cpu_s == pytest.approx(0.03, rel=0.1)


@needs_perf
def test_a_clock_that_was_taken_away_midway_says_unknown_and_not_nothing() -> None:
    clock = CodeClock(stepped=False)
    with clock.span:
        # What a daemon does that closes every descriptor it did not open.
        clock._perf.close()
        burn(0.01)
    cpu = clock.stop()
    assert cpu.cpu_s is None
    assert cpu.source == "perf"
