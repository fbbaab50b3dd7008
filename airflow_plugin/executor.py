"""Executors that decide before they hand tasks out: Airflow's own, with ``TaoMixin`` before them.

``[core] executor = airflow_plugin.executor.TaoCeleryExecutor,airflow_plugin.executor.TaoLocalExecutor``

In the scheduler's transaction nothing is read, written or waited for: a task on which something might be decided is
held, and a thread of ours decides (``decider``). The next heartbeats hand on what is decided, after 2 s at the latest.
Whatever of ours fails, a task goes where it would have gone.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakSet

from airflow_plugin._compat import takes_no_workloads
from airflow_plugin.facts import opted_out
from airflow_plugin.holding import Desk
from airflow_plugin.places import ExecutorSpec, executors
from airflow_plugin.settings import tao_here
from tao_flows.config import TaoConfig
from tao_flows.runtime import Tao

if TYPE_CHECKING:
    from airflow.executors.base_executor import BaseExecutor as _Base
else:
    _Base = object

log = logging.getLogger("tao_flows.airflow")

_ALONE_S: Final = 300.0
"""How long it is remembered which tasks are left alone: the tags of a DAG may change meanwhile."""
_MOST_ALONE: Final = 50_000
_MOST_TOLD: Final = 100


class TaoMixin(_Base):  # type: ignore[misc]
    """Put before an executor: ``class TaoMyExecutor(TaoMixin, MyExecutor)``, or ``tao_executor(MyExecutor)``.

    Of an executor for one team it makes nothing: that hands all on as it did.
    """

    _tao_here: ClassVar[WeakSet[TaoMixin]] = WeakSet()
    """Those that were started in this process."""
    _tao: Tao | None = None
    _tao_config: TaoConfig | None = None
    """The settings as the last heartbeat found them."""
    _tao_desk: Desk | None = None
    _tao_alone: tuple[float, set[object]]
    """Tasks that need not be held, and since when they are remembered."""
    _tao_moved: dict[Any, TaoMixin]
    """By key, who has a task that was queued here: its last run here may still be reported to this executor."""
    _tao_told: set[str]
    """Failures that were noted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tao_alone, self._tao_moved, self._tao_told = (0.0, set()), {}, set()

    def start(self) -> None:
        """Starts the executor."""
        super().start()
        try:
            if getattr(self, "team_name", None):
                log.info("tao-flows: %r is a team's, and decides nothing", self)
                return
            TaoMixin._tao_here.add(self)
            self._tao = tao_here()
            if self._tao is not None:
                # Imported here, so that no thread of ours holds a module's lock while the scheduler forks.
                from airflow_plugin import triggers  # noqa: F401
                from airflow_plugin.decider import Decider

                decider = Decider(self._tao, self, executors())
                self._tao_desk = Desk(decider.decide, self._tao_failed, f"tao-flows-decide-{type(self).__name__}")
                self._tao_config = self._tao.config
        except Exception as ours:  # noqa: BLE001 - without us the scheduler must still start
            self._tao_failed(ours)

    def queue_workload(self, workload: Any, session: Any) -> None:
        """Takes a workload: holds it if something might be decided on it, else hands it on at once."""
        try:
            if self._tao_may_act(workload) and self._tao_desk is not None and self._tao_desk.hold(workload):
                return
        except Exception as ours:  # noqa: BLE001 - it goes where it would have gone
            self._tao_failed(ours)
        self._tao_take(workload, session)

    def heartbeat(self) -> None:
        """Hands on what is decided, then does what the executor does."""
        try:
            self._tao_refresh()
        except Exception as ours:  # noqa: BLE001 - what is held must go on, whatever the settings say
            self._tao_failed(ours)
        try:
            if self._tao_desk is not None and len(self._tao_desk):
                self._tao_hand_on()
                # What was queued since the last heartbeat has been committed by now.
                self._tao_desk.release()
        except Exception as ours:  # noqa: BLE001 - the executor goes on
            self._tao_failed(ours)
        super().heartbeat()

    def has_task(self, task_instance: Any) -> bool:
        """Whether it has a task instance: queued, running or held, or was where one was queued that runs elsewhere now."""
        key = task_instance.key
        if super().has_task(task_instance) or (self._tao_desk is not None and key in self._tao_desk):
            return True
        # Airflow asks the executor that reports a run whether the task was queued anew since.
        there = self._tao_moved.get(key)
        return there is not None and there.tao_knows(key)

    @property
    def slots_available(self) -> int:
        """How many more workloads it can take."""
        return int(super().slots_available) - self._tao_held

    @property
    def slots_occupied(self) -> int:
        """How many workloads it has."""
        return int(super().slots_occupied) + self._tao_held

    def revoke_task(self, *, ti: Any) -> None:
        """Takes a task back."""
        super().revoke_task(ti=ti)
        if self._tao_desk is not None:
            self._tao_desk.drop(ti.key)

    def end(self, *args: Any, **kwargs: Any) -> None:
        """Ends the executor. What is held is handed on first, and sent where others run it."""
        try:
            TaoMixin._tao_here.discard(self)
            if self._tao_desk is not None:
                self._tao_desk.close()
                holds = len(self._tao_desk) > 0
                self._tao_hand_on(everything=True)
                if holds and not self.is_local:
                    self.trigger_tasks(self.parallelism - len(self.running))
        except Exception as ours:  # noqa: BLE001 - the executor ends
            self._tao_failed(ours)
        super().end(*args, **kwargs)

    def debug_dump(self) -> None:
        """Tells what it has, when the scheduler gets SIGUSR2."""
        super().debug_dump()
        self.log.info("tao-flows: %d held, %d moved", self._tao_held, len(self._tao_moved))

    def executor_of(self, spec: ExecutorSpec) -> Any | None:
        """The executor of this scheduler that can be handed a task; None where that is none of ours."""
        for executor in tuple(TaoMixin._tao_here):
            name = executor.name
            if name is not None and {spec.alias, spec.path} & {name.alias, name.module_path}:
                return executor
        return None

    def leave_alone(self, workload: Any, settings: TaoConfig) -> None:
        """Takes note that such tasks need not be held, as long as these settings stand."""
        alone = self._tao_alone[1]
        if settings is self._tao_config and len(alone) < _MOST_ALONE:
            alone.add(_kind(workload.ti))

    @property
    def _tao_held(self) -> int:
        return 0 if self._tao_desk is None else len(self._tao_desk)

    def _tao_may_act(self, workload: Any) -> bool:
        """Whether something might be decided on a workload, as far as is known without looking anywhere."""
        config = self._tao_config
        if config is None or config.mode != "enforce" or type(workload).__name__ != "ExecuteTask":
            return False
        return not opted_out(workload.ti.executor_config) and _kind(workload.ti) not in self._tao_alone[1]

    def _tao_refresh(self) -> None:
        now_s = time.monotonic()
        if self._tao is not None:
            config = self._tao.config
            if config is not self._tao_config or now_s - self._tao_alone[0] > _ALONE_S:
                self._tao_config, self._tao_alone = config, (now_s, set())
        if self._tao_moved:
            self._tao_moved = {key: there for key, there in self._tao_moved.items() if there.tao_knows(key)}

    def _tao_hand_on(self, *, everything: bool = False) -> None:
        if self._tao_desk is None:
            return
        for workload, onward in self._tao_desk.collect(everything=everything):
            own = workload.ti.queue
            ways = dict.fromkeys([(onward.executor or self, onward.queue or own), (self, own)])
            for there, queue in () if onward.away else ways:
                try:
                    self._tao_send(workload, there, queue)
                    break
                except Exception as error:  # noqa: BLE001 - then here, and the others all the same
                    self._tao_failed(error)

    def _tao_send(self, workload: Any, there: TaoMixin, queue: str) -> None:
        from airflow.utils.session import create_session

        workload.ti.queue = queue
        key = workload.ti.key
        self._tao_moved.pop(key, None)
        if there is not self:
            self._tao_moved[key] = there
            if hasattr(workload.ti, "external_executor_id"):
                workload.ti.external_executor_id = None  # by which this executor would have known it
        # Of its own: nobody else's is to be committed. Most executors make no use of it, and then it costs nothing.
        with create_session(scoped=False) as session:
            there._tao_take(workload, session)

    def _tao_take(self, workload: Any, session: Any) -> None:
        """Takes a workload as the executor does without us."""
        if takes_no_workloads(super().queue_workload):
            self.queued_tasks[workload.ti.key] = workload
        else:
            super().queue_workload(workload, session)

    def tao_knows(self, key: Any) -> bool:
        """Whether it has a task of this key: queued, running or held."""
        return key in self.queued_tasks or key in self.running or (self._tao_desk is not None and key in self._tao_desk)

    def _tao_failed(self, error: BaseException) -> None:
        """Notes a failure, each kind once, in a thread: the ledger may keep it waiting, and the scheduler must not be."""
        kind = f"{type(error).__name__}: {error}"
        if kind in self._tao_told or len(self._tao_told) >= _MOST_TOLD:
            return
        self._tao_told.add(kind)
        log.warning("tao-flows: deciding in the scheduler failed: %s", kind)
        if self._tao is not None:
            note, doing = self._tao.incidents.note_error, "deciding in the scheduler"
            with suppress(RuntimeError):  # no more threads are to be had
                threading.Thread(target=note, args=(doing, error), name="tao-flows-note", daemon=True).start()


def tao_executor(base: type[Any]) -> type[Any]:
    """An executor that decides before it hands tasks out to ``base``'s workers.

    To be configured it must be found by its path: ``TaoMyExecutor = tao_executor(MyExecutor)`` in a module.
    """
    said = f"{base.__name__}, which has tasks wait and moves them where that is decided."
    return type(f"Tao{base.__name__}", (TaoMixin, base), {"__doc__": said})


_BASES: Final = {
    "TaoLocalExecutor": "airflow.executors.local_executor.LocalExecutor",
    "TaoCeleryExecutor": "airflow.providers.celery.executors.celery_executor.CeleryExecutor",
    "TaoKubernetesExecutor": "airflow.providers.cncf.kubernetes.executors.kubernetes_executor.KubernetesExecutor",
}


def __getattr__(name: str) -> type[Any]:
    # Made when asked for: a provider that is not installed is missed only by who wants it.
    if name not in _BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, base = _BASES[name].rpartition(".")
    made = globals()[name] = tao_executor(getattr(import_module(module), base))
    made.__module__ = __name__
    return made


def _kind(ti: Any) -> object:
    """What a ruling on a task is the same for. The kind of run shows in the beginning of its id."""
    kind, marked, _ = ti.run_id.partition("__")
    return ti.dag_id, ti.task_id, getattr(ti, "dag_version_id", None), kind if marked else ti.run_id
