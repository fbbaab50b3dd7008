"""Every task and flow of a process metered with no change to its code: installed, and ``PREFECT_PLUGINS_ENABLED=true``.

Prefect loads this module at the end of ``import prefect`` by its entry point. Where Prefect's engine begins to run a
task or a flow, it is given a copy whose function has our shell around it; what users hold stays as it was. Nothing is
decided for such a task: it is metered, recorded and reported. A ``tao_task`` or ``tao_flow`` is left to itself.

Where Prefect is imported inside a running event loop it loads no plugins; ``observe()`` does the same by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from copy import copy
from typing import Any

from tao_flows.prefect._compat import Flow, Task, plugin_hook, replace_engine_calls
from tao_flows.prefect.flow import TaoFlow, count_submitted, engine_at_work, engine_goes_on, observed_flow
from tao_flows.prefect.starter import keep_threads_out
from tao_flows.prefect.task import TaoTask, observed_task
from tao_flows.runtime import log

_OURS = "tao_flows."

_observing = False


@plugin_hook
def setup_environment(*, ctx: Any) -> None:  # noqa: ARG001 - Prefect calls it by this name
    """Called by Prefect while it is imported. Never raises."""
    try:
        observe()
    except Exception as error:  # noqa: BLE001 - Prefect is there without us
        log.warning("tao-flows does not observe this process: %s: %s", type(error).__name__, error)


def observe() -> None:
    """Has every task and flow that runs in this process from here on metered; a second call does nothing.

    Raises:
        AttributeError: this version of Prefect has not what that takes; nothing has been changed then.
    """
    global _observing
    if _observing:
        return
    replace_engine_calls(_task, _flow)
    # The engine's CPU seconds inside a flow's body are not the body's.
    Task.__call__ = _called(Task.__call__)  # type: ignore[method-assign]
    Flow.__call__ = _called(Flow.__call__)  # type: ignore[method-assign]
    Task.submit = _submitted(Task.submit)  # type: ignore[method-assign]
    Task.map = _submitted(Task.map)  # type: ignore[method-assign]
    _observing = True


def _task(task: Task[..., Any]) -> Task[..., Any]:
    if isinstance(task, TaoTask) or str(getattr(task.fn, "__module__", "")).startswith(_OURS):
        return task
    observed: Task[..., Any] = observed_task(copy(task))
    return observed


def _flow(flow: Flow[..., Any]) -> Flow[..., Any]:
    if isinstance(flow, TaoFlow):
        return flow
    observed: Flow[..., Any] = observed_flow(copy(flow))
    return observed


def _called(own: Callable[..., Any]) -> Any:
    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, (TaoTask, TaoFlow)):  # it does so itself
            return own(self, *args, **kwargs)
        with engine_at_work():
            result = own(self, *args, **kwargs)
        return engine_goes_on(result)

    return call


def _submitted(own: Callable[..., Any]) -> Any:
    @functools.wraps(own)
    def submit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, TaoTask):
            return own(self, *args, **kwargs)
        with engine_at_work():
            keep_threads_out()
            futures = own(self, *args, **kwargs)
            # What task workers run outlives the flow, whose account does not wait for it.
            return futures if kwargs.get("deferred") else count_submitted(futures)

    return submit
