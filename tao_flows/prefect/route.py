"""Work that runs in the pool of its choice: ``route`` for deployments, ``serve`` and ``@tao_task(pools=...)`` for tasks.

The pools to choose among are those of a flow's sibling deployments (``elsewhere.siblings``). What runs is a run of the
deployment chosen, by Prefect's own ``run_deployment``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, cast
from uuid import UUID, uuid4

import anyio
import httpx
from prefect import Flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from prefect.utilities.asyncutils import run_coro_as_sync

from tao_flows.admission import Ask
from tao_flows.errors import DeniedError, InputError
from tao_flows.options import TaoOptions, as_tags, made, of_tags, split_options
from tao_flows.prefect._compat import FlowRunContext
from tao_flows.prefect.elsewhere import groups_of, siblings
from tao_flows.prefect.places import pool_of
from tao_flows.prefect.server import deployments_of
from tao_flows.prefect.settings import tao_here
from tao_flows.prefect.task_pools import aserve, serve
from tao_flows.records import RunKey, Who
from tao_flows.runtime import Tao

__all__ = ["aroute", "aserve", "route", "serve"]

_PATIENCE_S: Final = 5.0
"""How long a caller that is being stopped tries to stop what it waits for."""


def route(
    to: str | UUID | Flow[..., Any],
    *,
    parameters: Mapping[str, Any] | None = None,
    pools: Sequence[str] | None = None,
    timeout: float | None = None,
    poll_interval: float = 5.0,
    as_subflow: bool = True,
    **options: Any,
) -> FlowRun:
    """Runs a deployment in the pool that is decided on, and gives the run when it has ended.

    As Prefect's ``run_deployment``: ``run.state.result()`` is the flow's result, or raises what it failed by, or that it
    was cancelled. Beyond it, a caller that is stopped while it waits stops the run, unless ``as_subflow`` is False.

    Args:
        to: a deployment, ``"flow/deployment"`` or its id, whose siblings are the choice and whose pool is home; or a
            flow, whose deployments are.
        parameters: the flow's.
        pools: the pools to choose among, by id, home first; all if not given.
        timeout: seconds to wait for the end at most, 0 for not at all; None without limit.
        poll_interval: seconds between two looks.
        as_subflow: the run is shown as a part of the flow run or task run that calls.
        options: ``budget``, ``deadline`` and the like, as ``tao_task`` has them, over those of the deployment's tags;
            and those of ``run_deployment``.

    Raises:
        InputError: there is no such deployment or pool, or an option is malformed.
        DeniedError: the decision denied it, and is enforced.
    """
    given, rest = _split(options)
    chosen = run_coro_as_sync(_chosen(to, pools, given))
    asked = _asked(chosen, parameters, given, rest, as_subflow=as_subflow)
    run: FlowRun = cast("Any", run_deployment)(**asked, _sync=True)
    run_coro_as_sync(_retag(run, given))
    give_up_s = None if timeout is None else time.monotonic() + timeout
    with get_client(sync_client=True) as client, _stopped_too(lambda: _stop(run.id), wanted=as_subflow):
        while timeout != 0:
            run = client.read_flow_run(run.id)
            if _is_over(run, give_up_s):
                break
            time.sleep(poll_interval)
    return run


async def aroute(
    to: str | UUID | Flow[..., Any],
    *,
    parameters: Mapping[str, Any] | None = None,
    pools: Sequence[str] | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - Prefect's own name for it
    poll_interval: float = 5.0,
    as_subflow: bool = True,
    **options: Any,
) -> FlowRun:
    """The same as a coroutine."""
    given, rest = _split(options)
    chosen = await _chosen(to, pools, given)
    asked = _asked(chosen, parameters, given, rest, as_subflow=as_subflow)
    run: FlowRun = await cast("Any", run_deployment)(**asked, _sync=False)
    await _retag(run, given)
    give_up_s = None if timeout is None else time.monotonic() + timeout
    async with get_client() as client:
        with _stopped_too(lambda: _stop(run.id), wanted=as_subflow):
            while timeout != 0:
                run = await client.read_flow_run(run.id)
                if _is_over(run, give_up_s):
                    break
                await anyio.sleep(poll_interval)
    return run


def _split(options: Mapping[str, Any]) -> tuple[TaoOptions, dict[str, Any]]:
    if "work_queue_name" in options:
        # Prefect would create a queue that is not there, of which nobody takes anything.
        remedy = 'deploy to the queue, and name it in pools=["POOL/QUEUE"]'
        raise InputError("BAD_OPTION", "work_queue_name: the queue is that of the deployment chosen", remedy)
    return split_options(options)


def _asked(
    chosen: DeploymentResponse,
    parameters: Mapping[str, Any] | None,
    given: TaoOptions,
    rest: dict[str, Any],
    *,
    as_subflow: bool,
) -> dict[str, Any]:
    """What is asked of ``run_deployment``. The options go along as tags, for who decides on the run in its pool."""
    tags = [*(rest.pop("tags", None) or ()), *as_tags(given)]
    parts = {"parameters": dict(parameters or {}), "tags": tags, "timeout": 0, "as_subflow": as_subflow}
    return {**rest, **parts, "name": chosen.id}


async def _retag(run: FlowRun, given: TaoOptions) -> None:
    """Takes those tags off a run that its deployment gave it, and that say otherwise than the options."""
    ours = as_tags(given)
    names = {tag.partition("=")[0] for tag in ours}
    others = [tag for tag in run.tags if tag.partition("=")[0] not in names]
    if len(others) + len(ours) != len(run.tags):
        async with get_client() as client:
            await client.update_flow_run(run.id, tags=[*others, *ours])


def _is_over(run: FlowRun, give_up_s: float | None) -> bool:
    ended = run.state is not None and run.state.is_final()
    return ended or (give_up_s is not None and time.monotonic() >= give_up_s)


@contextmanager
def _stopped_too(stop: Callable[[], None], *, wanted: bool) -> Iterator[None]:
    """Stops what is waited for if the wait is stopped, by a signal, a cancellation or a time-out of the caller's."""
    try:
        yield
    except (httpx.HTTPError, ObjectNotFound):
        raise  # the server does not answer: the run goes on
    except BaseException:
        if wanted:
            stop()
        raise


def _stop(run_id: UUID) -> None:
    # Without awaiting anything: a coroutine that is being cancelled may not.
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": _PATIENCE_S}) as client:
            client.set_flow_run_state(run_id, Cancelling(message="Who waited for it was stopped"))
    except Exception as ours:  # noqa: BLE001 - what stops the caller is to be seen
        if (tao := tao_here()) is not None:
            tao.incidents.note_error("stopping a run", ours, run_id=str(run_id))


async def _chosen(
    to: str | UUID | Flow[..., Any], pools: Sequence[str] | None, given: TaoOptions
) -> DeploymentResponse:
    async with get_client() as client:
        home = await _home(client, to)
        found = await _among(client, home, pools)
        home = found[next(pool for pool in (*(pools or ()), pool_of(home)) if pool in found)]
        flow = await client.read_flow(home.flow_id)
    tao = tao_here()
    if tao is None or tao.config.mode == "off" or len(found) == 1:
        return home
    ask = _ask(tao, flow.name, home, found, given)
    verdict = await asyncio.to_thread(tao.admission.ask, ask, tao.config)
    if verdict.action == "deny":
        why = "" if verdict.decision is None else f": {verdict.decision.reason}"
        remedy = "raise the ceiling, wait for the window to pass, or change mode"
        raise DeniedError("DENIED", f"flow {flow.name!r} may not run now{why}", remedy)
    return found.get(verdict.pool, home)


async def _home(client: PrefectClient, to: str | UUID | Flow[..., Any]) -> DeploymentResponse:
    """The deployment that is meant."""
    if isinstance(to, (str, UUID)):
        try:
            return await (client.read_deployment(to) if isinstance(to, UUID) else client.read_deployment_by_name(to))
        except ObjectNotFound:
            remedy = "`prefect deployment ls` lists those that there are"
            raise InputError("UNKNOWN_DEPLOYMENT", f"there is no deployment {str(to)!r}", remedy) from None
    everywhere = await deployments_of(client, flow_name=to.name)
    those = sorted((each for each in everywhere if pool_of(each)), key=lambda each: each.name)
    if not those:
        remedy = "deploy it: tao-flows prefect deploy FILE:FLOW"
        raise InputError("UNKNOWN_DEPLOYMENT", f"flow {to.name!r} has no deployment in a work pool", remedy)
    if any(not groups_of(each) & groups_of(those[0]) for each in those[1:]):
        listed = ", ".join(f"{to.name}/{each.name}" for each in those)
        summary = f"flow {to.name!r} has deployments that are no siblings of each other"
        raise InputError("AMBIGUOUS_DEPLOYMENT", summary, f"name one of {listed}")
    return those[0]


async def _among(
    client: PrefectClient, home: DeploymentResponse, pools: Sequence[str] | None
) -> dict[str, DeploymentResponse]:
    """The deployments to choose among, by pool."""
    found = dict(await siblings(client, home.id))
    if pools is None:
        return found
    if unserved := [pool for pool in pools if pool not in found]:
        there = {pool_of(each) for each in await deployments_of(client, flow_id=home.flow_id)}
        if unknown := [pool for pool in unserved if pool not in there]:
            summary = f"pool {unknown[0]!r}: no sibling of deployment {home.name!r} is in it"
            raise InputError("UNKNOWN_POOL", summary, f"its pools are: {', '.join(sorted(there - {''}))}")
    return {pool: each for pool, each in found.items() if pool in pools} or {pool_of(home): home}


def _ask(
    tao: Tao, flow_name: str, home: DeploymentResponse, found: Mapping[str, DeploymentResponse], given: TaoOptions
) -> Ask:
    config, context = tao.config, FlowRunContext.get()
    caller = None if context is None else context.flow_run
    options = _over(_of_deployment(tao, home), given)
    # What is asked about is a run that does not exist yet: it is named by who calls, and a name of its own.
    instance = str(uuid4())
    key = RunKey("prefect", config.namespace, flow_name, str(caller.id if caller else instance), "", instance, 1)
    return Ask(
        key=key,
        home_pool=pool_of(home),
        ready_wall_ns=tao.clock.wall_ns(),
        who=config.who.overlay(Who.of_tags(home.tags)).overlay(options.who),
        budget=options.budget,
        deadline=options.deadline,
        run_start=getattr(caller, "start_time", None),
        # Who asks for a choice means that it may run in any of them.
        reroutable=options.reroutable is not False,
        allowed_zones=options.allowed_zones,
        requires=options.requires,
        size=options.size,
        can_reroute=True,
        reaches=found.__contains__,
        ahead=True,
    )


def _of_deployment(tao: Tao, home: DeploymentResponse) -> TaoOptions:
    try:
        return made(of_tags(home.tags))
    except InputError as error:
        tao.incidents.note_error(f"reading the tags of deployment {home.name}", error)
        return TaoOptions()


def _over(options: TaoOptions, given: TaoOptions) -> TaoOptions:
    """``given`` over ``options``, where it says anything."""
    said = {name: value for name, value in vars(given).items() if name != "who" and value not in (None, ())}
    return replace(options, who=options.who.overlay(given.who), **said)
