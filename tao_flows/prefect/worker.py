"""Workers that decide on a flow run before they start anything for it: it runs now, waits without a process, or elsewhere.

``prefect worker start --pool POOL --type tao-process``, and likewise ``tao-kubernetes`` and ``tao-docker`` where the
packages of those workers are installed. ``with_tao`` does the same for any other class of worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from tao_flows.prefect.places import pool_id

if TYPE_CHECKING:
    from tao_flows.prefect.desk import FlowDesk
    from tao_flows.prefect.sealing import FlowSealing

    _Base = BaseWorker[Any, Any, Any]
else:
    _Base = object

PREFIX: Final = "tao-"
"""What the type of a worker of ours begins with; the rest is that of the worker it is made of."""
_OTHERS: Final = {
    "TaoKubernetesWorker": ("prefect_kubernetes.worker", "KubernetesWorker"),
    "TaoDockerWorker": ("prefect_docker.worker", "DockerWorker"),
}


class TaoWorkerMixin(_Base):
    """Put before a worker's class. Without us, or where we fail, the worker does what it would have done."""

    _tao_desk: FlowDesk | None = None
    _tao_sealing: FlowSealing | None = None
    _tao_looking: Sequence[asyncio.Task[None]] = ()

    async def setup(self) -> None:
        """As the worker's, and then the desk's."""
        await super().setup()
        self._tao_open = AsyncExitStack()
        try:
            # Every process that loads a block imports this module: what only workers need is loaded by those that start.
            from tao_flows.prefect.opened import opened_desk
            from tao_flows.prefect.sealing import sealing_worker

            self._tao_desk = await self._tao_open.enter_async_context(opened_desk([self._work_pool_name]))
            self._tao_sealing = sealing_worker()
        except Exception:
            self._logger.warning("tao-flows is off in this worker", exc_info=True)
        looking = [] if self._tao_desk is None else [self._tao_look(self._tao_desk)]
        if self._tao_sealing is not None:
            looking.append(self._tao_sealing.keep_looking())
        self._tao_looking = [asyncio.create_task(each) for each in looking]

    async def teardown(self, *exc_info: Any) -> None:
        """Ends the desk, and then the worker. What waits, waits on."""
        for task in self._tao_looking:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tao_desk = None
        try:
            await self._tao_open.aclose()
        finally:
            await super().teardown(*exc_info)

    async def _submit_scheduled_flow_runs(self, flow_run_response: Sequence[Any]) -> list[FlowRun]:
        if self._tao_desk is not None:
            # What is on its way to its process is not for us any more.
            new = [each.flow_run for each in flow_run_response if each.flow_run.id not in self._submitting_flow_run_ids]
            going = {run.id for run in await self._tao_desk.consider(new, self._tao_pool)}
            held = {run.id for run in new} - going
            flow_run_response = [each for each in flow_run_response if each.flow_run.id not in held]
        return await super()._submit_scheduled_flow_runs(flow_run_response=list(flow_run_response))

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> Any:
        """As the worker's; what it starts is not given the signing key, nor where bundles are kept."""
        try:
            from tao_flows.prefect.sealing import keep_back

            keep_back(configuration, "worker" if self._tao_sealing is not None else "")
        except Exception:
            self._logger.warning("the signing key may be known to flow run %s", flow_run.id, exc_info=True)
        try:
            # The mixin's base is a worker that has the method.
            return await super().run(flow_run, configuration, task_status)  # type: ignore[safe-super]
        finally:
            if self._tao_sealing is not None:
                self._tao_sealing.has_ended = True

    def _tao_pool(self, flow_run: FlowRun) -> str:
        # A run that a worker is given does not name its pool.
        return pool_id(self._work_pool_name, flow_run.work_queue_name)

    async def _tao_look(self, desk: FlowDesk) -> None:
        """Looks after what waits in this worker's pool; what is brought forward is asked for at once."""
        from tao_flows.prefect.desk import LOOK_S

        while True:
            if await desk.look():
                try:
                    await self.get_and_submit_flow_runs()
                except Exception:
                    self._logger.debug("asking for what was brought forward failed", exc_info=True)
            await asyncio.sleep(LOOK_S)


class TaoProcessWorker(TaoWorkerMixin, ProcessWorker):
    """Runs flows in processes of this host, as Prefect's process worker does, once their time has come."""

    type = f"{PREFIX}process"
    _description = "Execute flow runs as subprocesses, when and where energy is cleanest, within their deadlines."
    _display_name = "Process, with tao-flows"


def with_tao(worker: type[BaseWorker[Any, Any, Any]]) -> type[BaseWorker[Any, Any, Any]]:
    """A class of workers as given that decides before it starts anything; its type is ``tao-`` and the given one's."""
    name = f"Tao{worker.__name__}"
    display = f"{getattr(worker, '_display_name', worker.type)}, with tao-flows"
    about = {"type": f"{PREFIX}{worker.type}", "__module__": __name__, "_display_name": display}
    return type(name, (TaoWorkerMixin, worker), {**about, "__doc__": worker.__doc__})


def register() -> None:
    """Makes the workers of those packages known that are installed; one that cannot be imported is left out."""
    for name in _OTHERS:
        with contextlib.suppress(ImportError):
            __getattr__(name)


def __getattr__(name: str) -> Any:
    """``TaoKubernetesWorker`` and ``TaoDockerWorker``: made when they are asked for, as their packages take long to load."""
    if name not in _OTHERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, worker = _OTHERS[name]
    made = globals()[name] = with_tao(getattr(import_module(module), worker))
    return made
