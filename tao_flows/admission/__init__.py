"""Before a task runs, in any engine: ruled on, decided, and reserved or planned. What it cost the ledger settles.

An adapter asks, acts on the verdict as far as it said it can, and asks again after a wait. Whatever fails here is
noted, and the task runs where it would have run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tao_flows.admission.ask import Ask, Noted, Verdict
from tao_flows.admission.asking import Asking
from tao_flows.admission.shared import Partners, Shared, World
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
from tao_flows.waiting import POLL_S, Reconsider, Stop, Waiters, Why

__all__ = ["LEDGER_S", "RECONSIDER_S", "Admission", "Ask", "Verdict"]

LEDGER_S: Final = 1.0
"""A decision waits no longer for the ledger than this in all, and one call of it more."""
RECONSIDER_S: Final = 60.0
"""A task that waits is decided anew this often, and at once when a signal, a pool, a regime or a setting changes."""


class Admission:
    """Decides on tasks, one process's part. Safe to share between threads.

    Args:
        ledger: shared by all who decide.
        profiles: what tasks are expected to cost.
        board: the carbon and price signals.
        clock: where time comes from.
        noted: told of our failures.
        poll_s: what waits here hears of a change this late at most.
        partners: other organisations' pools that are trusted now.
    """

    def __init__(
        self,
        ledger: Ledger,
        profiles: Profiles,
        board: SignalBoard | None,
        clock: Clock,
        noted: Noted,
        *,
        poll_s: float = POLL_S,
        partners: Partners | None = None,
    ) -> None:
        self._shared = Shared(ledger, profiles, board, clock, noted, partners)
        self.budgets = self._shared.budgets
        self.deferrals = self._shared.deferrals
        self._waiters = Waiters(self.deferrals, poll_s=poll_s, clock=clock)

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
        self,
        ask: Ask,
        settings: Callable[[], TaoConfig],
        deferral: Deferral,
        stop: Stop | None = None,
        moved: Callable[[Deferral], None] | None = None,
        handed_on: Callable[[], bool] = lambda: False,
    ) -> Why:
        """Waits in place for a deferral, deciding anew as it goes; why the wait is over.

        The task has then started by the ledger, or is gone from it. Whoever starts it asks once more before, saying
        that it can no longer wait.

        Args:
            ask: the question, as asked.
            settings: as they stand: no longer to enforce ends the wait within seconds.
            deferral: the plan.
            stop: ends the wait when set, within half a second.
            moved: told of another plan, from another thread; it must return at once.
            handed_on: asked when the wait was stopped: whether others wait on for it.
        """
        why = Why.STOPPED  # what an engine raises in this thread ends the wait, too
        try:
            why = self._waiters.wait(deferral, reconsider=self.reconsider(ask, settings, deferral, moved), stop=stop)
            if why is Why.STOPPED and handed_on():
                why = Why.HANDED_ON
        except RuntimeError as error:  # no thread is to be had to watch the time
            self._shared.noted.note_error("having a task wait", error, run_id=ask.key.run_id, task=ask.key.task)
            why = Why.RECONSIDERED
        finally:
            self.over([deferral.key], why)
        return why

    def over(self, keys: Sequence[RunKey], why: Why) -> None:
        """Has the ledger take note that waits are over, all for the same reason. Never raises.

        Waits ``LEDGER_S`` at most for the ledger, and one call of it more.
        """
        if why is Why.HANDED_ON:
            return
        try:
            with within(LEDGER_S):
                (self.deferrals.started if why.starts else self.deferrals.gone)(*keys)
        except TaoError as error:  # the rows lapse by themselves
            self._lost(error, matters=True)
        except Exception as ours:  # noqa: BLE001 - so they do then
            self._shared.noted.note_error("ending a wait", ours, run_id=keys[0].run_id, task=keys[0].task)

    @contextmanager
    def watched(
        self,
        ask: Ask,
        settings: Callable[[], TaoConfig],
        deferral: Deferral,
        ended: Callable[[Why], None],
        moved: Callable[[Deferral], None] | None = None,
    ) -> Iterator[Callable[[Why], None]]:
        """The same for whoever has a loop of its own: ``ended`` is told, from another thread, why the wait is over.

        Yields what is to be told of it then; a block that is left before means that the task is gone.
        """
        said: list[Why] = []
        cancel: Callable[[], bool] | None = None
        try:
            cancel = self._waiters.add(deferral, ended, self.reconsider(ask, settings, deferral, moved))
        except RuntimeError as error:
            self._shared.noted.note_error("having a task wait", error, run_id=ask.key.run_id, task=ask.key.task)
            ended(Why.RECONSIDERED)
        try:
            yield said.append
        finally:
            if cancel is not None:
                cancel()
            self.over([deferral.key], said[0] if said else Why.STOPPED)

    def reconsider(
        self,
        ask: Ask,
        settings: Callable[[], TaoConfig],
        deferral: Deferral,
        moved: Callable[[Deferral], None] | None = None,
    ) -> Reconsider:
        """What decides anew on a task that waits: its plan, or None to start; ``moved`` is told of another plan.

        Whether it may still wait, and whether anything has changed, is looked at every time, which costs next to nothing.
        """
        subject, asked_ns = ask.subject(), self._shared.clock.monotonic_ns()
        world: World | None = None  # the first look decides anew: the plan may have been made long ago, and elsewhere
        plan: Deferral | None = deferral

        def reconsider() -> Deferral | None:
            nonlocal asked_ns, world, plan
            config = settings()
            ruling = config.rules.ruling(subject, config.mode)
            if ruling.mode != "enforce" or not ruling.deferrable:
                return None
            now_ns, before, world = self._shared.clock.monotonic_ns(), world, self._shared.world(config)
            if world is not before or now_ns - asked_ns >= RECONSIDER_S * NS_PER_S:
                asked_ns, kept = now_ns, plan
                plan = self._reconsidered(ask, ruling, config, plan)
                if moved is not None and plan is not None and plan is not kept:
                    moved(plan)
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
