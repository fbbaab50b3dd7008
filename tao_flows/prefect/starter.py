"""Threads that a task runner starts for other tasks, kept out of the task that made it start them.

The task clock of a sync task is inherited by every thread that its thread starts. A task that submits tasks makes the
runner start threads right there, and would be charged for those tasks as well. They are started from here instead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from queue import SimpleQueue

from tao_flows.prefect._compat import FlowRunContext, TaskRunContext, start_threads_by


class Starter:
    """A thread that belongs to no task, and does for tasks what must not be theirs."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[None], Callable[[], None]]] = SimpleQueue()
        self._started = True
        try:
            threading.Thread(target=self._serve, name="tao-flows-starter", daemon=True).start()
        except RuntimeError:
            self._started = False  # no thread is to be had: then others start no more than we

    def run(self, act: Callable[[], None]) -> None:
        """Runs ``act`` on that thread and waits; raises what it raises."""
        if not self._started:
            act()
            return
        done: Future[None] = Future()
        self._calls.put((done, act))
        done.result()

    def _serve(self) -> None:
        while True:
            done, act = self._calls.get()
            try:
                done.set_result(act())
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                done.set_exception(error)


def have_starter() -> None:
    """Sees to it that this process has its starter, before a task clock is opened that it would inherit."""
    _starter(os.getpid())


def keep_threads_out() -> None:
    """Has the task runner that is here start its threads outside the task that submits, if a task does."""
    flow = FlowRunContext.get()
    if flow is not None and TaskRunContext.get() is not None:
        start_threads_by(flow.task_runner, _start)


def _start(act: Callable[[], None]) -> None:
    _starter(os.getpid()).run(act)


@cache
def _starter(_pid: int) -> Starter:
    # By process: a forked child has none of its parent's threads.
    return Starter()
