"""Before a task runs, in any engine: ruled on, decided, and reserved or planned. What it cost the ledger settles.

An adapter asks, acts on the verdict as far as it said it can, and asks again after a wait. Whatever fails here is
noted, and the task runs where it would have run.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tao_flows.admission.ask import Ask, Noted, Verdict
from tao_flows.admission.asking import Asking
from tao_flows.admission.shared import Shared
from tao_flows.budget import EnergyBudget
from tao_flows.clock import Clock
from tao_flows.config import TaoConfig
from tao_flows.errors import InputError, LedgerError, TaoError
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budgets import holder_of
from tao_flows.ledger.turns import left_s, within
from tao_flows.profiles import Profiles
from tao_flows.records import Deferral, RunKey
from tao_flows.rules import Ruling
from tao_flows.signals.board import SignalBoard
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Reconsider, Waiters, Why

__all__ = ["LEDGER_S", "RECONSIDER_S", "Admission", "Ask", "Verdict"]

LEDGER_S: Final = 1.0
"""A decision waits no longer for the ledger than this in all, and one call of it more."""
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
        """What to do with a task. Never raises: what cannot be decided runs.

        Waits ``LEDGER_S`` at most for the ledger, and one call of it more. Where it does not answer, the decision is
        taken without it: nothing is denied for a budget's sake, reserved or put off, and the record of the task's end
        charges its budgets when it arrives.
        """
        ruling = config.rules.ruling(ask.subject(), config.mode)
        if ruling.mode == "off":
            return Verdict("off", ask.home_pool)
        try:
            try:
                return self._decided(ask, ruling, config)
            except TaoError as error:
                self._lost(error, matters=ruling.deferrable or ruling.reroutable or ask.budget is not None)
                return Asking(self._shared, ask, ruling, config, blind=True).verdict()
        except Exception as ours:  # noqa: BLE001 - a task on which nothing could be decided runs
            self._shared.noted.note_error("deciding on a task", ours, run_id=ask.key.run_id, task=ask.key.task)
            named = ask.budget.name if isinstance(ask.budget, EnergyBudget) else ask.budget
            return Verdict(ruling.mode, ask.home_pool, budgets=(named,) if named else ())

    def _decided(self, ask: Ask, ruling: Ruling, config: TaoConfig, plan: Deferral | None = None) -> Verdict:
        """Decides with the ledger, again and again while others keep it busy.

        Raises:
            LedgerError: it does not answer.
        """
        with within(LEDGER_S):
            while True:
                try:
                    return Asking(self._shared, ask, ruling, config, plan).verdict()
                except (LedgerError, InputError) as error:
                    # A budget that is not there was dropped while we looked.
                    if error.code not in {"LEDGER_BUSY", "NO_BUDGET"} or left_s() == 0.0:
                        raise
                    self._shared.look_again()
                time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - not all at the same moment

    def _lost(self, error: TaoError, *, matters: bool) -> None:
        """Tells that the ledger does not answer. One that only takes records does so by design: told where it matters."""
        if error.code == "LEDGER_PAUSED" or (error.code == "LEDGER_WRITE_ONLY" and not matters):
            return
        self._shared.told.tell(error, "deciding without budgets, history and deferrals")

    def ended(self, key: RunKey) -> None:
        """Takes note that a try has ended here: the ledger has settled what it reserved."""
        self._shared.leases.drop(holder_of(key))

    def wait(
        self, ask: Ask, settings: Callable[[], TaoConfig], deferral: Deferral, stop: threading.Event | None = None
    ) -> Why:
        """Waits in place for a deferral, deciding anew as it goes; why the wait is over.

        The task has then started by the ledger, or is gone from it. Whoever starts it asks once more before, saying
        that it can no longer wait.

        Args:
            ask: the question, as asked.
            settings: as they stand: no longer to enforce ends the wait within seconds.
            deferral: the plan.
            stop: ends the wait when set, within half a second.
        """
        why = Why.STOPPED  # what an engine raises in this thread ends the wait, too
        try:
            why = self._waiters.wait(deferral, reconsider=self.reconsider(ask, settings, deferral), stop=stop)
        except RuntimeError as error:  # no thread is to be had to watch the time
            self._shared.noted.note_error("having a task wait", error, run_id=ask.key.run_id, task=ask.key.task)
            why = Why.RECONSIDERED
        finally:
            self._over(deferral, why)
        return why

    def _over(self, deferral: Deferral, why: Why) -> None:
        try:
            with within(LEDGER_S):
                (self.deferrals.started if why.starts else self.deferrals.gone)(deferral.key)
        except TaoError as error:  # the row lapses by itself
            self._lost(error, matters=True)
        except Exception as ours:  # noqa: BLE001 - so it does then
            self._shared.noted.note_error("ending a wait", ours, run_id=deferral.key.run_id, task=deferral.key.task)

    @contextmanager
    def watched(
        self, ask: Ask, settings: Callable[[], TaoConfig], deferral: Deferral, ended: Callable[[Why], None]
    ) -> Iterator[Callable[[Why], None]]:
        """The same for whoever has a loop of its own: ``ended`` is told, from another thread, why the wait is over.

        Yields what is to be told of it then; a block that is left before means that the task is gone.
        """
        said: list[Why] = []
        cancel: Callable[[], bool] | None = None
        try:
            cancel = self._waiters.add(deferral, ended, self.reconsider(ask, settings, deferral))
        except RuntimeError as error:
            self._shared.noted.note_error("having a task wait", error, run_id=ask.key.run_id, task=ask.key.task)
            ended(Why.RECONSIDERED)
        try:
            yield said.append
        finally:
            if cancel is not None:
                cancel()
            self._over(deferral, said[0] if said else Why.STOPPED)

    def reconsider(self, ask: Ask, settings: Callable[[], TaoConfig], deferral: Deferral) -> Reconsider:
        """What decides anew, now and then, on a task that waits: its plan, or None to start.

        Whether it may still wait is looked at every time, which costs next to nothing.
        """
        asked_ns = self._shared.clock.monotonic_ns()
        plan: Deferral | None = deferral

        def reconsider() -> Deferral | None:
            nonlocal asked_ns, plan
            config = settings()
            ruling = config.rules.ruling(ask.subject(), config.mode)
            if ruling.mode != "enforce" or not ruling.deferrable:
                return None
            now_ns = self._shared.clock.monotonic_ns()
            if now_ns - asked_ns >= RECONSIDER_S * NS_PER_S:
                asked_ns = now_ns
                plan = self._reconsidered(ask, ruling, config, plan)
            return plan

        return reconsider

    def _reconsidered(self, ask: Ask, ruling: Ruling, config: TaoConfig, plan: Deferral | None) -> Deferral | None:
        try:
            return self._decided(ask, ruling, config, plan).deferral
        except LedgerError:
            raise  # the plan stays
        except Exception as ours:  # noqa: BLE001 - what cannot be decided on does not wait
            self._shared.noted.note_error("deciding anew on a task", ours, run_id=ask.key.run_id, task=ask.key.task)
            return None
