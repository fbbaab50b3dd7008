"""One question: decided, and decided anew where another task was faster to what it wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final

from tao_flows.admission.ask import Ask, Verdict
from tao_flows.admission.shared import Shared
from tao_flows.config import TaoConfig
from tao_flows.controller.choose import choose
from tao_flows.controller.decide import decide
from tao_flows.controller.model import Action, Choice, DecisionRequest
from tao_flows.controller.parse import parse_request
from tao_flows.deadline import References, earliest
from tao_flows.gather import Gathered, Known, Wish, gather
from tao_flows.leases import LEASE_S
from tao_flows.ledger.budgets import Claim, Standing, claim_amount_uj, holder_of
from tao_flows.ledger.deferrals import Planned
from tao_flows.ledger.turns import left_s
from tao_flows.records import DecisionRecord, Deferral
from tao_flows.rules import Ruling
from tao_flows.units import NS_PER_S

MOST_TRIES: Final = 16
"""Tasks can want the last of a budget or of a slot at once: one that is late decides anew, so often at most."""


class Asking:
    """One question: decided, and decided anew where another task was faster to what it wanted.

    Args:
        shared: what the decisions of this process have in common.
        ask: the question.
        ruling: what rules say of it.
        config: the settings.
        plan: what the task waits for already; then nothing is reserved or recorded but a new plan.
        blind: the ledger cannot be asked. Of what it would tell nothing is known: nothing is denied for a budget's
            sake, reserved or put off.
    """

    def __init__(
        self,
        shared: Shared,
        ask: Ask,
        ruling: Ruling,
        config: TaoConfig,
        plan: Deferral | None = None,
        *,
        blind: bool = False,
    ) -> None:
        self._plan, self._blind = plan, blind
        self._of, self._ask, self._ruling, self._config = shared, ask, ruling, config
        self._enforced = ruling.mode == "enforce"
        self._budgets = shared.budgets_of(ask, ruling, config, blind=blind)
        self._wish = self._wished()

    def verdict(self) -> Verdict:
        """What the engine is to do.

        Raises:
            LedgerError: the ledger cannot be read or written, and the question is not blind.
        """
        with self._planning():
            for attempt in range(1, MOST_TRIES + 1):
                now_ns, gathered, standings = self._gather()
                request = parse_request(gathered.request, self._of.steps)
                if (unsaid := self._unsaid(request, gathered, now_ns)) is not None:
                    return unsaid
                answer = decide(request).to_json()
                verdict = self._act(answer, gathered, now_ns, last=attempt == MOST_TRIES)
                if verdict is not None:
                    break
            else:  # the last try always has a verdict
                raise AssertionError
        self._keep(answer, standings, verdict)
        return verdict

    @contextmanager
    def _planning(self) -> Iterator[None]:
        """The tasks of one process choose their slots one after another, where they cannot all have the same."""
        if not (self._enforced and self._wish.slack_s > 0):
            yield
            return
        patience_s = left_s()
        have_it = self._of.planning.acquire(timeout=-1 if patience_s is None else patience_s / 2)
        try:
            yield
        finally:
            if have_it:
                self._of.planning.release()

    def _wished(self) -> Wish:
        ask, ruling = self._ask, self._ruling
        can_defer, can_reroute = (can or not self._enforced for can in (ask.can_defer, ask.can_reroute))
        ready = datetime.fromtimestamp(ask.ready_wall_ns / NS_PER_S, timezone.utc)
        moments = References(ready, ask.run_start, ask.queued, ask.data_interval_end)
        deadlines = [each for each in (ask.deadline, ruling.deadline) if each is not None]
        lost = [each.unplaced() for each in deadlines if each.at(moments) is None]
        for problem in lost:
            self._of.noted.note(
                problem.code, problem.summary, remedy=problem.remedy, run_id=ask.key.run_id, task=ask.key.task
            )
        deadline = earliest(deadlines, moments)
        ends_ns = [] if deadline is None else [round(deadline.timestamp() * NS_PER_S)]
        if ask.latest_end_wall_ns is not None:
            ends_ns.append(ask.latest_end_wall_ns)
        return Wish(
            key=ask.key.task,
            flow=ask.key.task_flow,
            home_pool=ask.home_pool,
            ready_wall_ns=ask.ready_wall_ns,
            run_key=holder_of(ask.key),
            deadline_wall_ns=min(ends_ns, default=None),
            max_defer_s=ruling.max_defer_s,
            # What must end by a time that is not known must not wait; nor what nobody could release.
            deferrable=ruling.deferrable and can_defer and not lost and not self._blind,
            reroutable=ruling.reroutable and can_reroute,
            allowed_zones=ask.allowed_zones,
            requires=ask.requires,
            allowed_orgs=ruling.allowed_orgs,
            size=ask.size,
            engine_latency_s=ask.engine_latency_s,
            min_dwell_s=ask.min_dwell_s,
        )

    def _gather(self) -> tuple[int, Gathered, list[Standing]]:
        of, blind = self._of, self._blind
        now_ns, monotonic_ns = of.clock.wall_ns(), of.clock.monotonic_ns()
        standings: list[Standing] = []
        if self._budgets and not blind:
            names = [budget.name for budget in self._budgets]
            waits = self._plan is not None
            standings = of.standings(names) if waits else of.budgets.standings(names, without=self._wish.run_key)
        home, reaches = self._ask.home_pool, self._ask.reaches
        pools = of.pools(self._config, blind=blind)
        # Another organisation's pool is weighed only where the work may be given to it, and sent there.
        pools = tuple(pool for pool in pools if pool.org is None or (reaches and pool.org in self._wish.allowed_orgs))
        if reaches is not None:
            pools = tuple(pool for pool in pools if pool.pool_id == home or reaches(pool.pool_id))
        known = Known(
            pools=pools,
            states={} if blind else of.states(pools, now_ns),
            standings=standings,
            board=of.board,
            planned=None if blind else self._planned(),
        )
        gathered = gather(self._wish, known, None if blind else of.profiles, now_ns, monotonic_ns)
        for problem in gathered.problems:
            of.told.tell(problem)
        return now_ns, gathered, standings

    def _planned(self) -> Callable[[str, int, int], Sequence[int]]:
        if self._plan is not None:
            return self._of.planned.besides(self._plan)
        return partial(self._of.deferrals.planned, besides=self._ask.key)

    def _act(self, answer: dict[str, Any], gathered: Gathered, now_ns: int, *, last: bool) -> Verdict | None:
        """What follows from an answer; None where another task took what it needs meanwhile."""
        wanted: Action = answer["action"] if self._enforced else "run"
        pool = answer["pool"] if self._enforced and answer["pool"] else self._ask.home_pool
        if wanted == "defer":
            return self._defer(pool, answer, gathered, now_ns, last=last)
        if wanted != "deny" and not self._ask.ahead and not self._reserve(pool, gathered):
            if not last:
                self._wish = replace(self._wish, explore=False)  # a ceiling is met by what is expected, not hoped for
                return None
            wanted = "deny"
        return self._said(wanted, pool, answer, gathered, now_ns)

    def _unsaid(self, request: DecisionRequest, gathered: Gathered, now_ns: int) -> Verdict | None:
        """The verdict where nothing is written down: then it needs no explanation, which takes most of the time."""
        if self._plan is not None:
            return self._unmoved(choose(request), gathered, now_ns, self._plan)
        if not (self._ask.ahead and self._enforced):
            return None
        action = choose(request).action
        return None if action in {"defer", "reroute"} else Verdict(self._ruling.mode, self._ask.home_pool, action)

    def _unmoved(self, choice: Choice, gathered: Gathered, now_ns: int, plan: Deferral) -> Verdict | None:
        """What becomes of a wait, unless its plan moves."""
        mode, pool = self._ruling.mode, choice.pool or self._ask.home_pool
        if choice.action == "defer" and choice.start is not None:
            alike = pool == plan.pool and abs(_ns_of(choice.start) - plan.start_wall_ns) < gathered.slot_s * NS_PER_S
            # Starts are planned from the present on, so that they shift with it.
            return Verdict(mode, pool, "defer", deferral=plan) if alike else None
        # What would be denied now may be allowed at its start. What is to start is asked for by whoever starts it.
        unsaid = choice.action == "deny" or ("signal_meta" in gathered.request and _is_between(plan, now_ns, gathered))
        return Verdict(mode, pool, "defer" if unsaid else "run", deferral=plan if unsaid else None)

    def _defer(
        self, pool: str, answer: dict[str, Any], gathered: Gathered, now_ns: int, *, last: bool
    ) -> Verdict | None:
        deferral = self._deferral(answer)
        verdict = self._said("defer", pool, answer, gathered, now_ns, deferral)
        places, slot_s = gathered.places[pool], gathered.slot_s
        planned = self._of.deferrals.plan(deferral, places=places, slot_s=slot_s, decision=verdict.decision)
        if planned:
            if self._plan is not None:
                self._of.planned.moved(self._plan, deferral)
            return verdict
        self._of.planned.forget()
        if self._plan is not None and planned is Planned.FULL:
            return Verdict(self._ruling.mode, pool, "defer", deferral=self._plan)
        if planned is not Planned.FULL or left_s() == 0.0:
            self._wish = replace(self._wish, deferrable=False)
        if not last:
            return None
        action: Action = "run" if self._ask.ahead or self._reserve(self._ask.home_pool, gathered) else "deny"
        return self._said(action, self._ask.home_pool, answer, gathered, now_ns)

    def _reserve(self, pool: str, gathered: Gathered) -> bool:
        """Reserves what the task is expected to take of its budgets; False where a ceiling leaves no room for it."""
        expected = gathered.expected[pool]
        dispatch_j = next(each["dispatch_energy_j"] for each in gathered.request["pools"] if each["pool_id"] == pool)
        # A budget that was dropped since is none.
        names = {each["name"] for each in gathered.request.get("budget", ())}
        budgets = [budget for budget in self._budgets if budget.name in names]
        if not budgets or expected.energy_j is None:
            return True  # what is not known is not reserved: it is charged when it is
        runtime_s = expected.runtime_s
        energy_j = expected.energy_j.mean + (dispatch_j or 0.0)
        claims = [
            Claim(b.name, claim_amount_uj(b, energy_j, None if runtime_s is None else runtime_s.p50)) for b in budgets
        ]
        granted = self._of.budgets.reserve(self._wish.run_key, claims, LEASE_S, force=not self._enforced).granted
        if granted or not self._enforced:
            self._of.leases.keep(self._wish.run_key)
        return granted or not self._enforced

    def _deferral(self, answer: dict[str, Any]) -> Deferral:
        return Deferral(
            key=self._ask.key,
            pool=answer["pool"],
            ready_wall_ns=self._ask.ready_wall_ns,
            start_wall_ns=_wall_ns(answer["start"]),
            latest_wall_ns=_wall_ns(answer["latest_start"]),
            reason=answer["reason"],
        )

    def _said(
        self,
        action: Action,
        pool: str,
        answer: dict[str, Any],
        gathered: Gathered,
        now_ns: int,
        deferral: Deferral | None = None,
    ) -> Verdict:
        decision = DecisionRecord(
            key=self._ask.key,
            decided_wall_ns=now_ns,
            mode=self._ruling.mode,
            action=answer["action"],
            pool=answer["pool"] or "",
            reason=answer["reason"],
            request=gathered.request,
            answer=answer,
            enforced=self._enforced and action != "run",
        )
        return Verdict(self._ruling.mode, pool, action, tuple(b.name for b in self._budgets), decision, deferral)

    def _keep(self, answer: dict[str, Any], standings: Sequence[Standing], verdict: Verdict) -> None:
        """Writes the decision down, and the regime for the next one."""
        if verdict.decision is None or (self._ask.ahead and verdict.action not in {"defer", "reroute"}):
            return
        of = self._of
        if verdict.deferral is None:  # else it was written with the plan
            of.ledger.put_decision(verdict.decision)
        before = {standing.budget.name: standing.regime for standing in standings}
        name, regime = answer.get("budget"), answer["regime"]
        if name in before and regime is not None and before[name] != regime:
            of.budgets.set_regime(name, regime)


def _is_between(plan: Deferral, now_ns: int, gathered: Gathered) -> bool:
    """Whether a plan lies behind the last start that is weighed: they are slots apart, from the present on."""
    slot_ns = round(gathered.slot_s * NS_PER_S)
    last_ns = plan.latest_wall_ns - (plan.latest_wall_ns - now_ns) % slot_ns
    return plan.start_wall_ns > last_ns or plan.latest_wall_ns - now_ns < slot_ns


def _wall_ns(text: str) -> int:
    return _ns_of(datetime.fromisoformat(text.replace("Z", "+00:00")))


def _ns_of(moment: datetime) -> int:
    return round(moment.timestamp() * NS_PER_S)
