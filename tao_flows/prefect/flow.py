"""``@tao_flow``: a Prefect flow that ends with an account of its energy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from tao_flows.options import TaoOptions, split_options, with_changes
from tao_flows.prefect import suspending
from tao_flows.prefect._compat import Flow, FlowRunContext, Pause, PrefectFuture, State
from tao_flows.prefect.flow_run import FlowWindow, flow_windows
from tao_flows.prefect.publish import tao_report
from tao_flows.prefect.settings import tao_here
from tao_flows.records import RunRecord, Who
from tao_flows.spans import CpuSpan, Stepped, inside_span, stepped_async_generator, stepped_generator
from tao_flows.units import parse_duration_s

P = ParamSpec("P")
R = TypeVar("R")
_SUSPEND_AFTER = "suspend_after"
_HOOKS = ("on_completion_hooks", "on_failure_hooks", "on_crashed_hooks", "on_cancellation_hooks")


class TaoFlow(Flow[P, R]):
    """A metered Prefect flow. Made by ``tao_flow``, never by hand."""

    tao_options: TaoOptions
    user_fn: Callable[..., Any]
    suspend_after_s: float | None

    def with_options(self, **changes: Any) -> TaoFlow[P, R]:
        """As Prefect's, and with tao-flows' options too."""
        suspend_after_s = _suspend_after_s(changes, self.suspend_after_s)
        options, rest = with_changes(self.tao_options, changes)
        plain = copy(self)
        plain.fn = self.user_fn
        for hooks in _HOOKS:
            setattr(plain, hooks, [hook for hook in getattr(self, hooks) if hook is not tao_report])
        return _from_flow(super(TaoFlow, plain).with_options(**rest), options, suspend_after_s)

    if not TYPE_CHECKING:  # for a type checker it is Prefect's own, with the user's parameters and result

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with engine_at_work():  # of a flow that calls this one
                result = super().__call__(*args, **kwargs)
            return engine_goes_on(result)


@overload
def tao_flow(fn: Flow[P, R], /, **options: Any) -> TaoFlow[P, R]: ...
@overload
def tao_flow(fn: Callable[P, R], /, **options: Any) -> TaoFlow[P, R]: ...
@overload
def tao_flow(fn: None = None, /, **options: Any) -> Callable[[Callable[P, R]], TaoFlow[P, R]]: ...
def tao_flow(fn: Any = None, /, **options: Any) -> Any:
    """Makes a Prefect flow whose run ends with its energy account in the ledger and as artifacts.

    Every option of ``prefect.flow`` passes through; ``tao_flow(existing)`` takes over a flow as it is. Its tasks are
    metered where they are ``tao_task``; ``team``, ``owner``, ``cluster``, ``model_id`` and ``tao_tags`` hold for all
    of them unless they say otherwise.

    Args:
        fn: the user's function, or an existing Prefect flow.
        options: those of ``prefect.flow``, and of ``tao_flows.options.make_options``; and ``suspend_after``, a
            duration: a run of a deployment of which all that it could do waits at least this long is suspended, so
            that its worker is freed, and is resumed when the first of it starts. What has finished is not run again:
            a run with a task whose result is not persisted is not suspended.

    Raises:
        InputError: an option of ours is malformed, where it is written.
        TypeError: an option that neither Prefect nor tao-flows knows.
    """
    _suspend_after_s(dict(options), None)
    split_options(options)  # a mistake is told where it is written, also where the function comes later
    return functools.partial(_make, options) if fn is None else _make(options, fn)


def _make(options: dict[str, Any], fn: Any) -> Any:
    if isinstance(fn, TaoFlow):
        return fn.with_options(**options) if options else fn
    rest = dict(options)
    suspend_after_s = _suspend_after_s(rest, None)
    ours, rest = split_options(rest)
    if isinstance(fn, Flow):
        return _from_flow(fn.with_options(**rest) if rest else fn, ours, suspend_after_s)
    return _from_flow(Flow(fn, **rest), ours, suspend_after_s)


def _suspend_after_s(options: dict[str, Any], otherwise: float | None) -> float | None:
    """Takes the option out of ``options``; ``otherwise`` where it is not there.

    Raises:
        InputError: it is no duration.
    """
    if _SUSPEND_AFTER not in options:
        return otherwise
    value = options.pop(_SUSPEND_AFTER)
    return None if value is None else parse_duration_s(value, what=_SUSPEND_AFTER)


def _from_flow(flow: Flow[P, R], options: TaoOptions, suspend_after_s: float | None = None) -> TaoFlow[P, R]:
    tao = TaoFlow.__new__(TaoFlow)
    tao.__dict__.update(flow.__dict__)
    tao.user_fn, tao.tao_options, tao.suspend_after_s = flow.fn, options, suspend_after_s
    tao.fn = _shell(flow.fn, options)
    for hooks in _HOOKS:
        setattr(tao, hooks, [*getattr(flow, hooks), tao_report])
    return tao


def observed_flow(flow: Any) -> Any:
    """Has a flow that is nobody else's, and not a ``tao_flow``, end with its account."""
    flow.user_fn, flow.fn = flow.fn, _shell(flow.fn, TaoOptions())
    for hooks in _HOOKS:
        setattr(flow, hooks, [*getattr(flow, hooks), tao_report])
    return flow


def _shell(fn: Callable[..., Any], options: TaoOptions) -> Callable[..., Any]:
    """The user's function with its CPU seconds told apart, of the same kind and signature."""
    if inspect.isasyncgenfunction(fn):

        @functools.wraps(fn)
        async def shell(*args: Any, **kwargs: Any) -> Any:
            with _body(fn, options) as span:
                async for item in stepped_async_generator(fn(*args, **kwargs), span):
                    yield item

    elif inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def shell(*args: Any, **kwargs: Any) -> Any:
            with _body(fn, options) as span:
                return (yield from stepped_generator(fn(*args, **kwargs), span))

    elif inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def shell(*args: Any, **kwargs: Any) -> Any:
            with _body(fn, options) as span:
                result = await Stepped(fn(*args, **kwargs), span)
            return _ended(result)

    else:

        @functools.wraps(fn)
        def shell(*args: Any, **kwargs: Any) -> Any:
            with _body(fn, options) as span, span:
                result = fn(*args, **kwargs)
            return _ended(result)

    return shell


@contextmanager
def _body(user_fn: Any, options: TaoOptions) -> Iterator[CpuSpan]:
    """The window of the flow run that is here, and the span of its body; nothing of ours is raised."""
    window = _begin(user_fn, options)
    try:
        with nullcontext() if window is None else _leaving_if_suspended():
            yield CpuSpan() if window is None else window.body
    except Exception:
        raise  # a hook or another attempt follows, in this process
    except BaseException as signal:
        if window is not None:
            _taken_away(window, signal)
        raise


@contextmanager
def _leaving_if_suspended() -> Iterator[None]:
    """Around the flow's code: once that has stopped, a run that was suspended meanwhile is left, whatever came of it.

    Raises:
        Pause: it was suspended.
    """
    try:
        yield
    finally:
        context = FlowRunContext.get()
        run = None if context is None or context.flow_run is None else suspending.end(str(context.flow_run.id))
        if run is not None and run.is_suspended:
            run.hand_over()
            run.leave()


def _begin(user_fn: Any, options: TaoOptions) -> FlowWindow | None:
    """Opens the window of the flow run that is here, if it is one of ours; never raises."""
    context = FlowRunContext.get()
    own = context is not None and getattr(context.flow, "user_fn", None) is user_fn
    tao = tao_here() if own else None
    if tao is None or context is None or context.flow is None or context.flow_run is None or tao.config.mode == "off":
        return None
    flow_run = context.flow_run
    try:
        run = RunRecord(
            engine="prefect",
            namespace=tao.config.namespace,
            flow=context.flow.name,
            run_id=str(flow_run.id),
            state="running",
            started_wall_ns=tao.clock.wall_ns(),
            segment=tao.segment,
            who=tao.config.who.overlay(Who.of_tags(flow_run.tags)).overlay(options.who),
            name=flow_run.name,
        )
        suspending.begin(tao, flow_run, getattr(context.flow, "suspend_after_s", None))
        return flow_windows.begin(tao, run, flow_run.run_count)
    except Exception as ours:  # noqa: BLE001 - without us the user's flow must still run
        tao.incidents.note_error("starting to meter a flow", ours, run_id=str(flow_run.id))
        return None


def _taken_away(window: FlowWindow, signal: BaseException) -> None:
    """The run leaves this process (suspended, cancelled, terminated): what only this one knows is written now.

    Prefect calls no hook for a run that is suspended, and that of a cancelled one in another process.
    """
    context, tao = FlowRunContext.get(), tao_here()
    if isinstance(signal, Pause) and context is not None:
        tao_report(context.flow, context.flow_run, signal.state)
        return
    try:
        window.account(final=False)
    except Exception as ours:  # noqa: BLE001 - the signal is the engine's to see
        if tao is not None:
            tao.incidents.note_error("accounting for a flow that is stopped", ours)


def _ended(result: Any) -> Any:
    """Prefect calls no hook for a flow that returns a cancelled state of its own: the report is made here."""
    if isinstance(result, State) and result.is_cancelled():
        context = FlowRunContext.get()
        if context is not None:
            tao_report(context.flow, context.flow_run, result)
    return result


@contextmanager
def engine_at_work() -> Iterator[None]:
    """Takes the engine's CPU seconds out of the flow's body it was called from."""
    if not inside_span():
        yield
        return
    with CpuSpan():
        yield


def engine_goes_on(result: Any) -> Any:
    """The same for what the engine hands back to be awaited or iterated."""
    if not inside_span():
        return result
    if inspect.iscoroutine(result):
        return _awaited(result)
    if inspect.isgenerator(result):
        return stepped_generator(result, CpuSpan())
    if inspect.isasyncgen(result):
        return stepped_async_generator(result, CpuSpan())
    return result


async def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await Stepped(coroutine, CpuSpan())


def count_submitted(result: Any) -> Any:
    """Counts what was submitted, so that the account waits for tasks that outlive the flow's function."""
    context = FlowRunContext.get()
    run_id = "" if context is None or context.flow_run is None else str(context.flow_run.id)
    memory = flow_windows.find(run_id)
    window = None if memory is None else memory.window
    if window is None:
        return result
    for future in result if isinstance(result, list) else [result]:
        if isinstance(future, PrefectFuture):
            window.submitted()
            future.add_done_callback(functools.partial(_settled, window))
    return result


def _settled(window: FlowWindow, _future: Any) -> None:
    window.settled()
