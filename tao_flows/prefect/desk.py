"""Decides on flow runs before they are picked up: which go on now, which wait, which run elsewhere.

A worker of ours and the controller process have one each, and several may look at the same runs. All there is to know
is in the server and in the ledger. A run that waits is ``Scheduled(name="Deferred")`` at its planned start, so that the
server hands it to a worker even if everything of ours is gone; the plan is in the ledger, where it can be released.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from tao_flows.errors import TaoError
from tao_flows.ledger.deferrals import RELEASED
from tao_flows.ledger.turns import within
from tao_flows.prefect import elsewhere, partners
from tao_flows.prefect.api import Api, ApiPaused, is_taken
from tao_flows.prefect.deciding import LEDGER_S, SOON_S, Case, Deciding, is_later
from tao_flows.prefect.elsewhere import RETURNED
from tao_flows.prefect.events import decided, related_of
from tao_flows.prefect.facts import Facts, may_wait, waits, wall_ns
from tao_flows.prefect.moves import Mover, in_thread
from tao_flows.prefect.places import pool_of
from tao_flows.prefect.server import work_pools_of
from tao_flows.prefect.suspend import looks_after_any, resume_due
from tao_flows.prefect.waits import MOST_MOVES, Wait, Waits
from tao_flows.records import Deferral
from tao_flows.runtime import Tao
from tao_flows.units import s_from_ns
from tao_flows.waiting import Why

LOOK_S: Final = 2.0
"""Seconds between two looks: the time in which a change of a signal, or a release, is heard."""
READ_S: Final = 10.0
"""What waits is read from the server this often."""
REST_S: Final = 60.0
"""And this often where nothing waits by the ledger, and nothing has run elsewhere for ``_LATELY_S``."""
HORIZON_S: Final = 60.0
"""Runs are decided on so long before they are due: a worker takes them up to its prefetch before."""
MOST_ACTIONS: Final = 60
"""Runs put off, brought forward or sent in one look, at most: the others follow in the next."""
SIDE_BY_SIDE: Final = 4
"""Runs acted on at a time."""
API_REMEDY: Final = "runs that wait start at their planned time all the same, once the server is back"
_LATELY_S: Final = 3_600.0


class FlowDesk:
    """Decides on the flow runs of some work pools. Belongs to one event loop.

    Args:
        tao: this process's.
        api: of the server.
        work_pools: their names; None for all.
    """

    def __init__(self, tao: Tao, api: Api, work_pools: Collection[str] | None = None) -> None:
        self._tao, self._api, self._work_pools = tao, api, work_pools
        self._waits = Waits(tao)
        self._deciding = Deciding(tao, self._waits)
        self._mover = Mover(tao, api)
        self._names: dict[UUID, str] = {}
        self._foreign: set[str] = set()
        """Runs by the ledger that are in other work pools, or on another server."""
        self._due: dict[str, Wait] = {}
        """By run id, the waits that are over and have not been started yet."""
        self._read_s = -REST_S
        self._pools: Collection[str] = ()
        self._pools_s = -REST_S
        self._sent_s = time.monotonic()

    async def consider(self, runs: Sequence[FlowRun], pool: Callable[[FlowRun], str] = pool_of) -> list[FlowRun]:
        """Decides on runs that are about to start; those of them that go on now, where they are. Never raises.

        Waits ``LEDGER_S`` at most for the ledger, and one call of it more; a call of the API takes seconds at most.

        Args:
            runs: scheduled ones.
            pool: gives the pool of a run.
        """
        if self._api.paused_s > 0:
            return list(runs)
        going = {run.id for run in runs}
        try:
            cases = await self._cases([run for run in runs if self._is_open(run)], pool)
            cases = await in_thread(self._deciding.decide, cases)
        except Exception as ours:  # noqa: BLE001 - they go where they would have gone
            self._note("deciding on flow runs", ours)
            return list(runs)
        limit = asyncio.Semaphore(SIDE_BY_SIDE)
        stays = await asyncio.gather(*(self._act_on(case, limit) for case in cases))
        going -= {case.facts.run.id for case, stay in zip(cases, stays, strict=True) if not stay}
        return [run for run in runs if run.id in going]

    @property
    def where(self) -> str:
        """The address of the server."""
        return str(self._api.client.api_url)

    async def look_ahead(self, horizon_s: float) -> None:
        """Decides on all that is due within ``horizon_s`` seconds. Never raises."""
        if self._api.paused_s > 0:
            return
        try:
            runs = await self._api.upcoming(self._work_pools, horizon_s)
        except Exception as ours:  # noqa: BLE001 - the next look may do better
            self._note("looking for flow runs that are due", ours)
            return
        # Those that wait are looked after by their plans.
        await self.consider([run for run in runs if not waits(run)])

    async def look(self) -> int:
        """Looks once at all that waits; how many runs were brought forward or resumed. Never raises."""
        if self._api.paused_s > 0:
            return 0
        try:
            return await self._look()
        except Exception as ours:  # noqa: BLE001 - the next look may do better
            self._note("looking after flow runs that wait", ours)
            return 0

    async def _look(self) -> int:
        rows = await in_thread(self._rows)
        # What is known to be due does not wait for what is read.
        moved = await self._start_due(rows or {})
        now_s = time.monotonic()
        waiting = bool(rows) or len(self._waits) > 0 or looks_after_any()
        at_rest = not waiting and now_s - self._sent_s > _LATELY_S
        if rows is not None and now_s - self._read_s >= (REST_S if at_rest else READ_S):
            await self._read(rows)
            self._read_s = now_s
            moved += await self._start_due(rows)
            moved += await self._follow_others()
        return moved

    async def _start_due(self, rows: Mapping[str, Deferral]) -> int:
        await in_thread(self._waits.poll)
        for wait in self._waits.over():
            self._due[wait.run_id] = wait
        return await self._act(rows)

    def _is_open(self, run: FlowRun) -> bool:
        """Whether there is anything to decide on a run."""
        if self._tao.config.mode == "off" and not waits(run):
            return False
        if elsewhere.stays(run) or run.state_name == RETURNED or not (waits(run) or may_wait(run)):
            return False
        return waits(run) or not self._deciding.is_decided(run)

    async def _cases(self, runs: Sequence[FlowRun], pool: Callable[[FlowRun], str]) -> list[Case]:
        await self._learn_names(runs)
        found = []
        for run in runs:
            facts = self._facts(run, pool(run))
            if facts is None or facts.off:
                continue
            ruling = facts.ruling(self._tao.config)
            if waits(run) or (ruling.mode == "enforce" and (ruling.deferrable or ruling.reroutable)):
                found.append(Case(await self._reaching(facts)))
        return found

    async def _act_on(self, case: Case, limit: asyncio.Semaphore) -> bool:
        """Does what was decided on a run; whether it goes on now, where it is."""
        if case.at_it:
            return False
        verdict = case.verdict
        async with limit:
            try:
                return await self._done(case)
            except ApiPaused as silent:
                self._fell_silent("acting on a flow run", silent)
                if verdict is not None and verdict.deferral is not None:
                    self._deciding.unmoved.add(str(case.facts.run.id))
                return verdict is None or verdict.action == "run"
            except Exception as ours:  # noqa: BLE001 - it goes where it would have gone
                self._note("acting on a flow run", ours, str(case.facts.run.id))
        return True

    async def _done(self, case: Case) -> bool:
        facts, verdict = case.facts, case.verdict
        if verdict is not None and verdict.deferral is not None:
            moved = await self._put_off(facts, verdict.deferral)
            if moved and verdict.decision is not None:
                decided(self._tao, verdict.decision, related_of(facts.run))
            return False
        if case.waited is not None and case.waited.state in {"waiting", RELEASED}:
            self._waits.forget(case.waited.key.run_id)
            await self._mover.close([case.waited.key], Why.PLANNED)
        if verdict is None or verdict.action != "reroute" or verdict.decision is None:
            return True
        self._sent_s = time.monotonic()
        sent = await self._mover.send(facts, verdict.pool, verdict.decision.reason)
        if sent:
            decided(self._tao, verdict.decision, related_of(facts.run))
        return not sent

    async def _put_off(self, facts: Facts, deferral: Deferral) -> bool:
        moved = await self._mover.put_off(facts, deferral)
        self._deciding.unmoved.discard(str(facts.run.id))
        if moved:
            self._waits.add(facts, deferral, min(deferral.start_wall_ns, deferral.latest_wall_ns))
        else:
            self._waits.forget(deferral.key.run_id)
        return moved

    def _rows(self) -> Mapping[str, Deferral] | None:
        try:
            with within(LEDGER_S):
                return self._waits.rows()
        except TaoError:  # told of by whoever decides; what is known here goes on
            return None

    async def _read(self, rows: Mapping[str, Deferral]) -> None:
        """Compares what waits by the server with what waits by the ledger."""
        runs = await self._api.deferred(self._work_pools)
        await self._mover.finish([run for run in runs if run.state is not None and is_taken(run.state)], rows.get)
        await self._learn_names([run for run in runs if waits(run) and str(run.id) in rows])
        for run in runs:
            row = rows.get(str(run.id))
            if row is not None and waits(run):
                await self._meet(run, row)
        here = {str(run.id) for run in runs}
        self._foreign &= rows.keys()
        await self._resolve([row for run_id, row in rows.items() if run_id not in here | self._foreign])
        for wait in self._waits.all():
            if wait.run_id not in here and wait.run_id not in rows:
                self._waits.forget(wait.run_id)

    async def _meet(self, run: FlowRun, row: Deferral) -> None:
        known = self._waits.get(row.key.run_id)
        facts = known.facts if known is not None else self._facts(run, pool_of(run))
        if facts is not None and facts.key(row.key.namespace) == row.key:
            if known is None:
                facts = await self._reaching(facts)
            self._waits.add(facts, row, wall_ns(run.next_scheduled_start_time))

    async def _resolve(self, missing: Sequence[Deferral]) -> None:
        """What became of runs that wait by the ledger, and do not by the server."""
        by_id = {row.key.run_id: row for row in missing}
        found = {str(run.id): run for run in await self._api.runs([UUID(run_id) for run_id in by_id])}
        for run_id, row in by_id.items():
            run = found.get(run_id)
            ours = run is not None and (self._work_pools is None or run.work_pool_name in self._work_pools)
            if run is None and self._waits.get(run_id) is not None:  # it was deleted
                self._waits.forget(run_id)
                await self._mover.close([row.key], Why.GONE)
                continue
            if run is None or run.state is None or not ours:
                self._foreign.add(run_id)
                continue
            if run.state.is_scheduled() or is_taken(run.state):
                continue  # about to wait, or to start
            self._waits.forget(run_id)
            self._due.pop(run_id, None)
            await self._mover.close(
                [row.key], Why.GONE if run.state.is_final() and run.start_time is None else Why.PLANNED
            )

    async def _act(self, rows: Mapping[str, Deferral]) -> int:
        """Starts what has waited long enough, and puts off what the server would start too early."""
        now_ns = self._tao.clock.wall_ns()
        late = [
            (wait, row)
            for wait in self._waits.all()
            if wait.why is None and wait.moves < MOST_MOVES
            and s_from_ns(wait.due_wall_ns - now_ns) < HORIZON_S
            and (row := rows.get(wait.run_id)) is not None and row.state == "waiting"
            and is_later(row, max(now_ns, wait.due_wall_ns))
        ]  # fmt: skip
        due = list(self._due.values())
        random.shuffle(due)  # several desks begin with different ones
        due = due[:MOST_ACTIONS]
        limit = asyncio.Semaphore(SIDE_BY_SIDE)
        started = await asyncio.gather(
            *(self._guarded(self._start(wait), wait, limit) for wait in due),
            *(
                self._guarded(self._put_off(wait.facts, row), wait, limit)
                for wait, row in late[: MOST_ACTIONS - len(due)]
            ),
        )
        return sum(started[: len(due)])

    async def _guarded(self, act: Any, wait: Wait, limit: asyncio.Semaphore) -> bool:
        async with limit:
            try:
                return bool(await act)
            except ApiPaused as silent:
                self._fell_silent("moving a flow run that waits", silent)
                return False
            except Exception as ours:  # noqa: BLE001 - the server starts it at its planned start
                self._due.pop(wait.run_id, None)
                self._note("moving a flow run that waits", ours, wait.run_id)
                return False

    async def _start(self, wait: Wait) -> bool:
        why, key = wait.why or Why.PLANNED, wait.deferral.key
        left_s = s_from_ns(wait.due_wall_ns - self._tao.clock.wall_ns())
        known = await in_thread(self._tao.admission.deferrals.states_of, [key])
        moved = False
        is_open = key in known and known[key].state in {"waiting", RELEASED}
        # Else another desk was faster, or the server is about to hand it on; it is closed when that has happened.
        if is_open and (left_s > SOON_S or wait.facts.siblings):
            moved = await self._mover.start(wait.facts, wait.deferral, why)
            self._sent_s = time.monotonic() if wait.facts.siblings else self._sent_s
        self._due.pop(wait.run_id, None)
        self._waits.forget(wait.run_id)
        return moved

    async def _follow_others(self) -> int:
        """Looks after runs that run elsewhere and runs that are suspended; how many of these go on now."""
        client, pools = self._api.client, self._work_pools
        resumed = 0
        try:
            resumed = await self._api.call(lambda: resume_due(client, pools, tao=self._tao))
            names = pools if pools is not None else await self._all_pools()
            await self._api.call(lambda: elsewhere.mirror(client, names))
            await self._api.call(lambda: partners.follow(self._tao, client, pools))
        except Exception as ours:  # noqa: BLE001 - the next look goes on from there
            self._note("looking after runs elsewhere and suspended ones", ours)
        return resumed

    async def _all_pools(self) -> Collection[str]:
        if time.monotonic() - self._pools_s >= REST_S:
            self._pools = [pool.name for pool in await self._api.call(lambda: work_pools_of(self._api.client))]
            self._pools_s = time.monotonic()
        return self._pools

    async def _learn_names(self, runs: Sequence[FlowRun]) -> None:
        unknown = {run.flow_id for run in runs} - self._names.keys()
        if unknown:
            self._names.update(await self._api.flow_names(unknown))

    def _facts(self, run: FlowRun, pool: str) -> Facts | None:
        """What is known of a run; None where it is in no pool, or its tags are wrong, which is told."""
        name = self._names.get(run.flow_id)
        try:
            return Facts.of(run, name, pool) if name and pool else None
        except TaoError as error:
            self._note("reading a flow run's tags", error, str(run.id))
            self._deciding.keep_decided(run)
            return None

    async def _reaching(self, facts: Facts) -> Facts:
        """The facts with the deployments that the run can be sent to, where it may be."""
        run = facts.run
        if run.deployment_id is None or not facts.ruling(self._tao.config).reroutable:
            return facts
        deployment_id = run.deployment_id
        try:
            found: dict[str, Any] = {**await in_thread(partners.reachable, self._tao, facts.flow)}
            found |= await self._api.call(lambda: elsewhere.siblings(self._api.client, deployment_id))
        except Exception as ours:  # noqa: BLE001 - it runs where it is
            self._note("looking for a flow run's other deployments", ours, str(run.id))
            return facts
        return replace(facts, siblings={} if set(found) <= {facts.pool} else found)

    def _fell_silent(self, doing: str, silent: ApiPaused) -> None:
        self._note(doing, silent)
        self._read_s = -REST_S  # what was begun is read, and finished, as soon as there is an answer

    def _note(self, doing: str, error: Exception, run_id: str = "") -> None:
        if not isinstance(error, ApiPaused):
            self._tao.incidents.note_error(doing, error, run_id=run_id)
        elif error.__cause__ is not None:  # else it was told when the pause began
            self._tao.incidents.note("PREFECT_API", "the Prefect API does not answer", remedy=API_REMEDY)
