"""One deployment of a flow in each of several pools, so that its runs can be sent from one to another.

They are siblings by their names, ``STEM@POOL``, and carry what ``@tao_flow`` says as tags, for who decides on a run and
cannot import its code. Nothing is created but deployments: no work pool, and no queue, as Prefect would for a name that
it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import httpx
from prefect import Flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from tao_flows.errors import InputError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.pools import PoolStore
from tao_flows.options import TAG_PREFIX, TaoOptions, as_tags, of_tags
from tao_flows.pools import load_pools, merge_pools
from tao_flows.prefect.elsewhere import BETWEEN, GROUP_TAG, groups_of
from tao_flows.prefect.places import pool_of, work_pool_and_queue
from tao_flows.prefect.server import deployments_of, work_pools_of
from tao_flows.prefect.settings import watcher

STEM: Final = "tao"
"""The names of deployments begin with it unless the user says otherwise."""


@dataclass(frozen=True)
class Wanted:
    """What is to be deployed."""

    entrypoint: str
    """``FILE:FLOW``, as Prefect has it."""
    pools: tuple[str, ...]
    """By id: ``POOL`` or ``POOL/QUEUE``."""
    stem: str = STEM
    source: str | None = None
    """Where workers get the code: a directory or the address of a repository; None: the present directory."""
    image: str | None = None
    """An image that holds the code, in the place of a source."""
    parameters: Mapping[str, Any] | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deployed:
    """A deployment as it stands now."""

    pool: str
    name: str
    """``FLOW/DEPLOYMENT``."""
    id: str
    what: str
    """``created``, ``updated``, ``unchanged``; or ``kept``: there is another one of the group in the pool, left as is."""
    tags: tuple[str, ...]


def deploy_now(wanted: Wanted) -> tuple[Sequence[Deployed], Sequence[str]]:
    """``deploy`` for who has no loop, to every pool described if none is named; and the described that are no work pools.

    Raises:
        InputError: as ``deploy``.
        ConfigError, LedgerError: the pools described cannot be read.
        TaoError: SERVER_UNREACHABLE.
    """

    async def act() -> tuple[Sequence[Deployed], Sequence[str]]:
        found, left = (wanted.pools, ()) if wanted.pools else await _described()
        return await deploy(replace(wanted, pools=found)), left

    try:
        return asyncio.run(act())
    except httpx.HTTPError as error:
        summary = f"the Prefect server does not answer: {error or type(error).__name__}"
        raise TaoError("SERVER_UNREACHABLE", summary, "see PREFECT_API_URL and `prefect config view`") from error


async def deploy(wanted: Wanted) -> Sequence[Deployed]:
    """Sees to it that there is a deployment of the flow in each pool. What is there already keeps its schedules.

    Raises:
        InputError: the flow cannot be loaded, an option of its fits no tag, or a work pool or queue does not exist; then
            nothing is deployed.
        HTTPStatusError: the server does not answer.
    """
    of_tags(wanted.tags)
    flow = await _load(wanted)
    async with get_client() as client:
        await check_pools(client, wanted.pools)
        there = await deployments_of(client, flow_name=flow.name)
        group = {BETWEEN + wanted.stem, GROUP_TAG + wanted.stem}
        by_name = {each.name: each for each in there}
        others = {pool_of(each): each for each in there if groups_of(each) & group}
        kept = {pool: each for pool, each in others.items() if each.name != _name(wanted, pool)}
        tags = [*_tags_of(flow), *wanted.tags, *([GROUP_TAG + wanted.stem] if kept else [])]
        done = []
        for pool in wanted.pools:
            if (other := kept.get(pool)) is not None and _name(wanted, pool) not in by_name:
                done.append(_done(flow, pool, other, "kept"))
            else:
                done.append(await _deploy(client, flow, wanted, pool, by_name.get(_name(wanted, pool)), tags))
    return done


async def check_pools(client: PrefectClient, pools: Sequence[str]) -> None:
    """Refuses pools that do not exist.

    Raises:
        InputError: UNKNOWN_POOL or UNKNOWN_QUEUE, with the list of those that exist.
    """
    if not pools:
        raise InputError("NO_POOL", "no pool to deploy to", "name one or more with --pool")
    there = sorted(pool.name for pool in await work_pools_of(client))
    for pool in pools:
        name, queue = work_pool_and_queue(pool)
        if name not in there:
            listed = f"those that exist: {', '.join(there)}" if there else "there is none: `prefect work-pool create`"
            raise InputError("UNKNOWN_POOL", f"there is no work pool {name!r}", listed)
        queues = sorted(each.name for each in await client.read_work_queues(work_pool_name=name))
        if queue not in queues:
            summary = f"work pool {name!r} has no queue {queue!r}"
            raise InputError("UNKNOWN_QUEUE", summary, f"those that exist: {', '.join(queues)}")


async def _described() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the pools described, those that are work pools of the server, and the others."""
    config = watcher().get().config
    ledger = open_ledger(config.ledger)
    try:
        pools = merge_pools(() if config.pools is None else load_pools(config.pools), PoolStore(ledger).all())
    finally:
        ledger.close()
    async with get_client() as client:
        there = {each.name for each in await work_pools_of(client)}
    found = tuple(pool.pool_id for pool in pools if work_pool_and_queue(pool.pool_id)[0] in there)
    return found, tuple(pool.pool_id for pool in pools if pool.pool_id not in found)


async def _load(wanted: Wanted) -> Flow[..., Any]:
    """The flow, which knows where workers get its code from."""
    source, entrypoint = wanted.source or str(Path.cwd()), wanted.entrypoint
    path, _, name = entrypoint.rpartition(":")
    if wanted.source is None and Path(path).is_absolute():
        source, entrypoint = str(Path(path).parent), f"{Path(path).name}:{name}"
    if not path:
        raise InputError("BAD_ENTRYPOINT", f"{entrypoint!r} is no entrypoint", "write it as FILE:FLOW")
    try:
        if wanted.source is None:
            # A flow that cannot be imported would be replaced by one that only has its name, and none of its options.
            flow: Flow[..., Any] = load_flow_from_entrypoint(str(Path(source) / entrypoint), use_placeholder_flow=False)
            if wanted.image is not None:
                return flow
        loaded: Flow[..., Any] = await cast("Any", Flow.from_source)(source=source, entrypoint=entrypoint, _sync=False)
    except Exception as error:
        said = str(error.__cause__ or error)
        raise InputError("BAD_ENTRYPOINT", f"{wanted.entrypoint}: {said}", "write it as FILE:FLOW") from error
    return loaded


def _tags_of(flow: Flow[..., Any]) -> tuple[str, ...]:
    options = getattr(flow, "tao_options", None)
    return as_tags(options) if isinstance(options, TaoOptions) else ()


def _name(wanted: Wanted, pool: str) -> str:
    # A name of Prefect's can hold no slash.
    return f"{wanted.stem}{BETWEEN}{pool.replace('/', '.')}"


async def _deploy(
    client: PrefectClient,
    flow: Flow[..., Any],
    wanted: Wanted,
    pool: str,
    before: DeploymentResponse | None,
    tags: Sequence[str],
) -> Deployed:
    work_pool, queue = work_pool_and_queue(pool)
    made = await cast("Any", flow.to_deployment)(
        name=_name(wanted, pool),
        parameters=dict(wanted.parameters or {}),
        tags=list(tags),
        work_pool_name=work_pool,
        work_queue_name=queue,
        _sync=False,
    )
    if before is None:
        deployment_id = await made.apply(image=wanted.image, _sync=False)
        return _done(flow, pool, await client.read_deployment(deployment_id), "created")
    # Created anew it would lose its schedules and what they have scheduled.
    change = _change(flow, wanted, before, made, tags)
    if not change:
        return _done(flow, pool, before, "unchanged")
    await client.update_deployment(before.id, DeploymentUpdate(**change))
    return _done(flow, pool, await client.read_deployment(before.id), "updated")


def _change(
    flow: Flow[..., Any], wanted: Wanted, before: DeploymentResponse, made: Any, tags: Sequence[str]
) -> dict[str, Any]:
    """What an existing deployment lacks. Tags of others stay, and parameters unless some are given."""
    own = {tag for tag in before.tags if not tag.startswith(TAG_PREFIX)}
    schema = parameter_schema(flow).model_dump(exclude_unset=True)
    pool = work_pool_and_queue(pool_of(before))
    now: dict[str, Any] = {
        "entrypoint": made.entrypoint,
        "tags": sorted(own | set(tags)),
        "parameter_openapi_schema": schema,
        "work_pool_name": made.work_pool_name,
        "work_queue_name": made.work_queue_name,
    }
    was: dict[str, Any] = {
        "entrypoint": before.entrypoint,
        "tags": sorted(before.tags),
        "parameter_openapi_schema": before.parameter_openapi_schema,
        "work_pool_name": pool[0],
        "work_queue_name": pool[1],
    }
    if made.storage is not None:
        steps = made.storage.to_pull_step()
        now["pull_steps"], was["pull_steps"] = steps if isinstance(steps, list) else [steps], before.pull_steps
    if wanted.parameters is not None:
        now["parameters"], was["parameters"] = dict(wanted.parameters), before.parameters
    if wanted.image is not None:
        variables = {**before.job_variables, "image": wanted.image}
        now["job_variables"], was["job_variables"] = variables, before.job_variables
    change = {name: value for name, value in now.items() if value != was[name]}
    if change.keys() & {"work_pool_name", "work_queue_name"}:
        change |= {name: now[name] for name in ("work_pool_name", "work_queue_name")}
    return change


def _done(flow: Flow[..., Any], pool: str, deployment: DeploymentResponse, what: str) -> Deployed:
    tags = tuple(sorted(deployment.tags))
    return Deployed(pool, f"{flow.name}/{deployment.name}", str(deployment.id), what, tags)
