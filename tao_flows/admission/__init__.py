"""Before a task runs, in any engine: ruled on, decided, and reserved or planned. What it cost the ledger settles.

An adapter asks, acts on the verdict as far as it said it can, and asks again after a wait. Whatever fails here is
noted, and the task runs where it would have run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tao_flows.admission.ask import Ask, Noted, Verdict
from tao_flows.admission.asking import Asking
from tao_flows.admission.shared import Shared
from tao_flows.budget import EnergyBudget
from tao_flows.clock import Clock
from tao_flows.config import TaoConfig
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budgets import holder_of
from tao_flows.profiles import Profiles
from tao_flows.records import Deferral, RunKey
from tao_flows.signals.board import SignalBoard
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Reconsider, Waiters, Why

__all__ = ["RECONSIDER_S", "Admission", "Ask", "Verdict"]

RECONSIDER_S: Final = 60.0
"""A task that waits is decided anew this often: signals change every few minutes at the most."""


class Admission:
    """Decides on tasks, one process's part. Safe to share between threads.

    Args:
        ledger: shared by all who decide.
        profiles: what tasks are expected to cost.
        board: the carbon and price signals.
        clock: where time comes from.
        noted: told of our failures.
    """

    def __init__(
        self, ledger: Ledger, profiles: Profiles, board: SignalBoard | None, clock: Clock, noted: Noted
    ) -> None:
        self._shared = Shared(ledger, profiles, board, clock, noted)
        self.budgets = self._shared.budgets
        self.deferrals = self._shared.deferrals
        self._waiters = Waiters(self.deferrals, clock=clock)

    def ask(self, ask: Ask, config: TaoConfig) -> Verdict:
        """What to do with a task. Never raises: what cannot be decided runs."""
        try:
            return self._ask(ask, config)
        except Exception as ours:  # noqa: BLE001 - a task on which nothing could be decided runs
            self._shared.noted.note_error("deciding on a task", ours, run_id=ask.key.run_id, task=ask.key.task)
            named = ask.budget.name if isinstance(ask.budget, EnergyBudget) else ask.budget
            return Verdict(config.mode, ask.home_pool, budgets=(named,) if named else ())

    def _ask(self, ask: Ask, config: TaoConfig, plan: Deferral | None = None) -> Verdict:
        ruling = config.rules.ruling(ask.subject(), config.mode)
        if ruling.mode == "off":
            return Verdict("off", ask.home_pool)
        return Asking(self._shared, ask, ruling, config, plan).verdict()

    def ended(self, key: RunKey) -> None:
        """Takes note that a try has ended here: the ledger has settled what it reserved."""
        self._shared.leases.drop(holder_of(key))

    def wait(self, ask: Ask, config: TaoConfig, deferral: Deferral, stop: threading.Event | None = None) -> Why:
        """Waits in place for a deferral, deciding anew as it goes; why the wait is over.

        The task has then started by the ledger, or is gone from it. Whoever starts it asks once more before, saying
        that it can no longer wait.
        """
        why = Why.STOPPED  # what an engine raises in this thread ends the wait, too
        try:
            why = self._waiters.wait(deferral, reconsider=self.reconsider(ask, config, deferral), stop=stop)
        finally:
            self._over(deferral, why)
        return why

    def _over(self, deferral: Deferral, why: Why) -> None:
        try:
            (self.deferrals.started if why.starts else self.deferrals.gone)(deferral.key)
        except Exception as ours:  # noqa: BLE001 - the row lapses by itself
            self._shared.noted.note_error("ending a wait", ours, run_id=deferral.key.run_id, task=deferral.key.task)

    @contextmanager
    def watched(
        self, ask: Ask, config: TaoConfig, deferral: Deferral, ended: Callable[[Why], None]
    ) -> Iterator[Callable[[Why], None]]:
        """The same for whoever has a loop of its own: ``ended`` is told, from another thread, why the wait is over.

        Yields what is to be told of it then; a block that is left before means that the task is gone.
        """
        said: list[Why] = []
        cancel = self._waiters.add(deferral, ended, self.reconsider(ask, config, deferral))
        try:
            yield said.append
        finally:
            cancel()
            self._over(deferral, said[0] if said else Why.STOPPED)

    def reconsider(self, ask: Ask, config: TaoConfig, deferral: Deferral) -> Reconsider:
        """What decides anew, now and then, on a task that waits: its plan, or None to start."""
        asked_ns = self._shared.clock.monotonic_ns()
        plan: Deferral | None = deferral

        def reconsider() -> Deferral | None:
            nonlocal asked_ns, plan
            now_ns = self._shared.clock.monotonic_ns()
            if now_ns - asked_ns >= RECONSIDER_S * NS_PER_S:
                asked_ns, plan = now_ns, self._ask(ask, config, plan).deferral
            return plan

        return reconsider
