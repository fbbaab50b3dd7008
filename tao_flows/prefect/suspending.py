"""A flow run whose tasks all wait long leaves its worker, and is handed to one again when the first of them starts.

In the run's own process: it is suspended as Prefect suspends runs, with what waits written down beside it. Once its
code has stopped it is scheduled for its planned start, so that the server resumes it whatever becomes of us. The other
half, ``suspend.py``, brings that start forward.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import uuid4

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.logging.loggers import flow_run_logger
from prefect.states import Scheduled, Suspended

from tao_flows.admission import Ask
from tao_flows.admission.asked import ask_from_json, ask_json
from tao_flows.ledger.deferrals import WAITING
from tao_flows.prefect._compat import (
    Pause,
    State,
    TaskRunContext,
    impatient_client,
    in_transaction,
    mark_suspended,
    reusable,
)
from tao_flows.prefect.deferred import SUSPENDED, moment, said_of
from tao_flows.records import Deferral, RunKey
from tao_flows.runtime import Tao
from tao_flows.units import NS_PER_S, s_from_ns
from tao_flows.waiting import Why

PREFIX: Final = "tao-flows-"
"""The pause key of a suspension of ours begins with it, goes on with a number that counts up, and is also the key under
which the flow run's inputs hold what waits in it."""
SETTLE_S: Final = 3.0
"""A run whose tasks wait is not looked at before: the server hears of its other tasks a moment late."""
LOOK_S: Final = 1.0
_ASK_AGAIN_S: Final = 10.0
"""What other tasks of a run do is asked of the server this often at most."""
_PAGE: Final = 200
_SOON_NS: Final = NS_PER_S
"""What is planned within this counts as due."""


@dataclass(frozen=True)
class Waiting:
    """A task that waits in a flow run."""

    ask: Ask
    plan: Deferral


@dataclass(frozen=True)
class Earlier:
    """A wait that this run was suspended in: its task is asked about once more."""

    key: RunKey
    ready_wall_ns: int
    due: bool
    """Its time has come, or a person wants it to go on."""


class _Refused(Exception):
    """Why a run is not suspended."""

    def __init__(self, why: str, *, for_good: bool) -> None:
        super().__init__(why)
        self.for_good = for_good


class Suspending:
    """A flow run in its own process that may be suspended.

    Args:
        tao: this process's parts.
        flow_run: as it begins here.
        after_s: it is suspended if all that it could do waits at least this long.
    """

    def __init__(self, tao: Tao, flow_run: Any, after_s: float) -> None:
        self._tao, self._run, self._after_s = tao, flow_run, after_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._waits: dict[str, tuple[Waiting, float]] = {}
        """By task run; with when it began to wait, on the monotonic clock."""
        self._at_work: set[str] = set()
        self._reusable: dict[str, tuple[str, bool]] = {}
        """By task run, its task and whether its last try's result is found again."""
        self._left: list[Waiting] = []
        self._watching, self._asked_s = False, 0.0
        self._never = _unfit(flow_run)
        self._told: set[str] = set()
        self._key = ""
        self.state: State[Any] | None = None
        """The state that it is suspended in; None while it is not."""
        self._forgotten, self._earlier = False, list[Earlier]()
        ours = sorted(key for key in flow_run.empirical_policy.pause_keys or () if key.startswith(PREFIX))
        self._number = len(ours) + 1
        if ours:
            self._recall(ours[-1])

    @property
    def is_suspended(self) -> bool:
        """Whether its tasks are to leave."""
        return self._stop.is_set()

    def is_set(self) -> bool:
        """The same, as what ends a wait in place."""
        return self._stop.is_set()

    def again(self, task: str, ask: Ask) -> Ask:
        """The question about a task, of one that waited when the run was suspended with what it was promised then."""
        with self._lock:
            earlier = next((each for each in self._earlier if each.key.task == task), None)
            if earlier is not None:
                self._earlier.remove(earlier)
        if earlier is None:
            # What was promised is not known any more: nothing is put off once more.
            return replace(ask, can_defer=False) if self._forgotten else ask
        self._tao.admission.over([earlier.key], Why.RECONSIDERED)
        return replace(ask, ready_wall_ns=earlier.ready_wall_ns, can_defer=ask.can_defer and not earlier.due)

    @contextmanager
    def waiting(self, ask: Ask, plan: Deferral) -> Iterator[Callable[[Deferral], None]]:
        """A task of the run waits inside; yields what is told of another plan."""
        instance = ask.key.instance
        # A transaction that is left is rolled back: nobody leaves while one is open.
        held = in_transaction()

        def moved(to: Deferral) -> None:
            with self._lock:
                if instance in self._waits:
                    self._waits[instance] = Waiting(ask, to), self._waits[instance][1]

        with self._lock:
            self._waits[instance] = Waiting(ask, plan), time.monotonic()
            if held:
                self._at_work.add(instance)
            start, self._watching = not self._watching, True
        if start:
            self._start()
        try:
            yield moved
        finally:
            with self._lock:
                del self._waits[instance]
                self._at_work.discard(instance)

    @contextmanager
    def at_work(self, context: TaskRunContext) -> Iterator[None]:
        """A task of the run is at work inside.

        Raises:
            Pause: the run has been suspended: the task is not to begin.
        """
        instance = str(context.task_run.id)
        with self._lock:
            self.leave()
            self._at_work.add(instance)
        found_again = False
        try:
            yield
            found_again = reusable(context)
        finally:
            with self._lock:
                self._at_work.discard(instance)
                self._reusable[instance] = context.task.name, found_again

    def leave(self) -> None:
        """Raises Pause if the run has been suspended."""
        if self.state is not None:
            raise Pause(state=self.state)

    def hand_over(self) -> None:
        """Has the server resume the run at its first planned start: its code here has stopped. Never raises."""
        if not self._left:
            return
        try:
            with impatient_client() as client:
                client.set_flow_run_state(self._run.id, resume_at(self._left, self._key))
        except Exception as ours:  # noqa: BLE001 - it stays suspended, and the desk resumes it
            self._note("scheduling a suspended flow run", ours)

    def _start(self) -> None:
        thread = threading.Thread(
            target=copy_context().run, args=(self._watch,), name="tao-flows-suspending", daemon=True
        )  # fmt: skip
        try:
            thread.start()
        except RuntimeError:  # no more threads are to be had: it waits where it is
            self._watching = False

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                if not self._waits or self.state is not None:
                    self._watching = False
                    return
                try:
                    self._look()
                except _Refused as refused:
                    if refused.for_good:
                        self._never = str(refused)
                        self._tell(self._never)
                except Exception as ours:  # noqa: BLE001 - it waits where it is
                    self._note("suspending a flow run", ours)

    def _look(self) -> None:
        """Suspends the run, if all that it could do waits long.

        Raises:
            _Refused: it is not to be.
        """
        now_ns, now_s = self._tao.clock.wall_ns(), time.monotonic()
        left_s = s_from_ns(min(wait.plan.start_wall_ns for wait, _ in self._waits.values()) - now_ns)
        waited_s = min(now_s - since_s for _, since_s in self._waits.values())
        # What has come near is waited for where it is: to leave and to come back costs a process.
        if self._at_work or waited_s < SETTLE_S or left_s + waited_s < self._after_s or left_s < self._after_s / 2:
            return
        if self._never:
            self._tell(self._never)
            return
        self._check_results()
        if now_s - self._asked_s < _ASK_AGAIN_S:
            return
        self._asked_s = now_s
        with impatient_client() as client:
            self._check_others(client)
            self._suspend(client)

    def _check_results(self) -> None:
        lost = sorted({task for task, found_again in self._reusable.values() if not found_again})
        if lost:
            raise _Refused(f"{', '.join(lost)} would run again: its result is not persisted under a key", for_good=True)

    def _check_others(self, client: SyncPrefectClient) -> None:
        """Raises _Refused where a task that is none of ours is at work, or would run again."""
        ours = {*self._waits, *self._reusable}
        here = FlowRunFilter(id=FlowRunFilterId(any_=[self._run.id]))
        offset = 0
        while page := client.read_task_runs(flow_run_filter=here, limit=_PAGE, offset=offset):
            offset += len(page)
            for task_run in page:
                if str(task_run.id) in ours or task_run.state_name == SUSPENDED:
                    continue
                if task_run.state_type is StateType.RUNNING:
                    raise _Refused(f"{task_run.name} is at work", for_good=False)
                persisted = task_run.state is not None and task_run.state.data is not None
                is_final = task_run.state is not None and task_run.state.is_final()
                if is_final and not (task_run.state_type is StateType.COMPLETED and persisted):
                    raise _Refused(f"{task_run.name} would run again: its result is not persisted", for_good=True)

    def _suspend(self, client: SyncPrefectClient) -> None:
        waits, key = [wait for wait, _ in self._waits.values()], f"{PREFIX}{self._number:06d}-{uuid4().hex}"
        client.create_flow_run_input(self._run.id, key, waits_json(waits))
        result: OrchestrationResult[Any] = client.set_flow_run_state(
            self._run.id, Suspended(pause_key=key, message=_said(waits))
        )
        if result.status is not SetStateStatus.ACCEPT:
            raise _Refused(f"Prefect refuses it: {getattr(result.details, 'reason', '')}", for_good=True)
        self._key, self._left = key, waits
        self.state = result.state or client.read_flow_run(self._run.id).state
        flow_run_logger(self._run).info("tao-flows: the flow run is suspended: %s", _said(waits))
        if self.state is not None:
            mark_suspended(self._run.id, self.state)
            self._stop.set()

    def _recall(self, key: str) -> None:
        """Reads what waited when the run was suspended."""
        try:
            with impatient_client() as client:
                asks = waits_from_json(client.read_flow_run_input(self._run.id, key))
            known, now_ns = (
                self._tao.admission.deferrals.states_of([ask.key for ask in asks]),
                self._tao.clock.wall_ns(),
            )
        except Exception as ours:  # noqa: BLE001 - it goes on, and nothing waits any more
            self._note("reading what waited in a flow run", ours)
            self._forgotten = True
            return
        due = {ask.key for ask in asks if _is_due(known.get(ask.key), now_ns)}
        by_person = not due  # nobody of ours resumed it
        for ask in asks:
            # Task runs of one name cannot be told apart: each has been promised what the first has.
            ready_ns = min(each.ready_wall_ns for each in asks if each.key.task == ask.key.task)
            self._earlier.append(Earlier(ask.key, ready_ns, by_person or ask.key in due))
        self._earlier.sort(key=lambda each: not each.due)

    def _tell(self, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            flow_run_logger(self._run).info("tao-flows: the flow run waits without being suspended: %s", why)

    def _note(self, doing: str, error: Exception) -> None:
        self._tao.incidents.note_error(doing, error, run_id=str(self._run.id))


def resume_at(waits: list[Waiting], pause_key: str, start_wall_ns: int | None = None) -> State[Any]:
    """The state of a suspended run whose code has stopped: the server hands it to a worker at its first start.

    Args:
        waits: what waits in it.
        pause_key: names the suspension.
        start_wall_ns: another start than the first that is planned.
    """
    start_ns = min(wait.plan.start_wall_ns for wait in waits) if start_wall_ns is None else start_wall_ns
    return Scheduled(
        name=SUSPENDED,
        scheduled_time=moment(start_ns),
        message=_said(waits),
        state_details={"pause_key": pause_key},
    )


def waits_json(waits: list[Waiting]) -> str:
    """What ``waits_from_json`` reads."""
    return json.dumps([ask_json(wait.ask) for wait in waits])


def waits_from_json(text: str) -> list[Ask]:
    """What waits in a suspended run; the plans are in the ledger.

    Raises:
        InputError, KeyError, TypeError, ValueError: it was not written by ``waits_json``.
    """
    return [ask_from_json(stored) for stored in json.loads(text)]


def _said(waits: list[Waiting]) -> str:
    first = min(waits, key=lambda wait: wait.plan.start_wall_ns)
    others = f" (and {len(waits) - 1} more)" if len(waits) > 1 else ""
    return f"{first.ask.key.task}{others}: {said_of(first.plan)}"


def _is_due(known: Deferral | None, now_ns: int) -> bool:
    return known is None or known.state != WAITING or known.start_wall_ns <= now_ns + _SOON_NS


def _unfit(flow_run: Any) -> str:
    """Why Prefect could not suspend a run; empty where it could."""
    if flow_run.deployment_id is None:
        return "it belongs to no deployment"
    return "it is a subflow's" if flow_run.parent_task_run_id is not None else ""


_runs: dict[str, Suspending] = {}
_lock = threading.Lock()


def begin(tao: Tao, flow_run: Any, after_s: float | None) -> None:
    """A flow run begins here; None: it is not to be suspended. Never raises."""
    if after_s is None:
        return
    try:
        run = Suspending(tao, flow_run, after_s)
    except Exception as ours:  # noqa: BLE001 - it waits where it is
        tao.incidents.note_error("beginning a flow run that may be suspended", ours, run_id=str(flow_run.id))
        return
    with _lock:
        _runs[str(flow_run.id)] = run


def of_run(run_id: str) -> Suspending | None:
    """The run, if it may be suspended and its code is in this process."""
    return _runs.get(run_id)


def end(run_id: str) -> Suspending | None:
    """The run's code has stopped here."""
    with _lock:
        return _runs.pop(run_id, None)
