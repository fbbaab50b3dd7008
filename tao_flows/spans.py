"""CPU seconds of code that shares its thread with other code: what runs inside it is told apart from it.

A span is entered and left as often as need be: once for a function, once a step for a coroutine or generator. A span
entered while another is open on the same thread (a task calling a task, the engine around a task) takes its own
seconds out of the outer one, so that no CPU second is charged twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_stack = threading.local()


class CpuSpan:
    """CPU seconds of one piece of code, exclusive of the spans inside it.

    Args:
        now_s: reads the CPU seconds charged to this code so far; the thread's own clock by default.
    """

    def __init__(self, now_s: Callable[[], float] = time.thread_time) -> None:
        self._now_s = now_s
        self._entered_s = 0.0
        self._inner_s = 0.0
        self.cpu_s = 0.0
        """Exclusive CPU seconds of the steps that have been left."""

    def __enter__(self) -> CpuSpan:
        spans = _spans()
        spans.append(self)
        self._inner_s = 0.0
        self._entered_s = self._now_s()
        return self

    def __exit__(self, *_: object) -> None:
        step_s = max(0.0, self._now_s() - self._entered_s)
        spans = _spans()
        spans.remove(self)
        self.cpu_s += max(0.0, step_s - self._inner_s)
        if spans:
            spans[-1]._inner_s += step_s  # noqa: SLF001 - another of this class


def _spans() -> list[CpuSpan]:
    spans: list[CpuSpan] | None = getattr(_stack, "spans", None)
    if spans is None:
        spans = _stack.spans = []
    return spans


class Stepped(Generic[T]):
    """Awaits a coroutine, timing each of its steps with ``span`` and nothing in between.

    Everything else passes through: what it yields to the loop, what is thrown into it, its result, its context.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], span: CpuSpan) -> None:
        self._coroutine = coroutine
        self._span = span

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine, span = self._coroutine, self._span
        step: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731 - the step to take next, a value
        while True:
            try:
                with span:
                    waited_for = step()
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                sent = yield waited_for
            except GeneratorExit:
                with span:
                    coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 - cancellation too is the coroutine's to handle
                step = _throwing(coroutine, error)
            else:
                step = _sending(coroutine, sent)


def _sending(coroutine: Coroutine[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: coroutine.send(value)


def _throwing(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)


def stepped_generator(generator: Generator[Any, Any, T], span: CpuSpan) -> Generator[Any, Any, T]:
    """The same generator, timing each of its steps with ``span``."""
    step: Callable[[], Any] = lambda: next(generator)  # noqa: E731 - the step to take next, a value
    while True:
        try:
            with span:
                item = step()
        except StopIteration as stop:
            result: T = stop.value
            return result
        try:
            sent = yield item
        except GeneratorExit:
            with span:
                generator.close()
            raise
        except BaseException as error:  # noqa: BLE001 - what the consumer throws is the generator's to handle
            thrown = error
            step = lambda: generator.throw(thrown)  # noqa: E731, B023 - used before thrown is bound anew
        else:
            value = sent
            step = lambda: generator.send(value)  # noqa: E731, B023 - used before value is bound anew


async def stepped_async_generator(generator: AsyncGenerator[Any, Any], span: CpuSpan) -> AsyncGenerator[Any, Any]:
    """The same async generator, timing each of its steps with ``span``."""
    step: Any = generator.asend(None)
    while True:
        try:
            item = await Stepped(step, span)
        except StopAsyncIteration:
            return
        try:
            sent = yield item
        except GeneratorExit:
            await Stepped(generator.aclose(), span)
            raise
        except BaseException as error:  # noqa: BLE001 - what the consumer throws is the generator's to handle
            step = generator.athrow(error)
        else:
            step = generator.asend(sent)


def inside_span() -> bool:
    """Whether a span is open on this thread."""
    return bool(_spans())
