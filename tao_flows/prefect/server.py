"""What is asked of a Prefect server about many runs at once, by its public client."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowFilter,
    FlowFilterId,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse

_PAGE: Final = 200
"""The most that a server gives at once, unless it is set otherwise."""
_ACTIVE: Final = [each for each in StateType if each not in TERMINAL_STATES]


async def runs_of(
    client: PrefectClient,
    *,
    names: Collection[str] | None = None,
    active: bool = False,
    tags: Collection[str] | None = None,
    keys: Collection[str] | None = None,
    ids: Collection[UUID] | None = None,
    work_pool_names: Collection[str] | None = None,
) -> Sequence[FlowRun]:
    """Every flow run that fits all that is given.

    Args:
        client: of the server.
        names: of the state, any of them.
        active: only those that have not ended.
        tags: all of them.
        keys: idempotency keys, any of them.
        ids: any of them.
        work_pool_names: any of them.

    Raises:
        HTTPStatusError: the server does not answer.
    """
    state = None
    if names is not None or active:
        state = FlowRunFilterState(
            name=None if names is None else FlowRunFilterStateName(any_=list(names)),
            type=FlowRunFilterStateType(any_=_ACTIVE) if active else None,
        )
    asked: dict[str, Any] = {
        "state": state,
        "tags": None if tags is None else FlowRunFilterTags(all_=list(tags)),
        "idempotency_key": None if keys is None else FlowRunFilterIdempotencyKey(any_=list(keys)),
        "id": None if ids is None else FlowRunFilterId(any_=list(ids)),
    }
    which = FlowRunFilter(**{name: value for name, value in asked.items() if value is not None})
    pools = None if work_pool_names is None else WorkPoolFilter(name=WorkPoolFilterName(any_=list(work_pool_names)))
    found: dict[UUID, FlowRun] = {}
    page, offset = _PAGE, 0
    while page == _PAGE:
        runs = await client.read_flow_runs(flow_run_filter=which, work_pool_filter=pools, limit=_PAGE, offset=offset)
        found.update((run.id, run) for run in runs)
        page, offset = len(runs), offset + len(runs)
    return list(found.values())


async def deployments_of(
    client: PrefectClient, *, flow_id: UUID | None = None, flow_name: str | None = None, tag: str | None = None
) -> Sequence[DeploymentResponse]:
    """Every deployment of a flow.

    Raises:
        HTTPStatusError: the server does not answer.
    """
    flow = FlowFilter(
        id=None if flow_id is None else FlowFilterId(any_=[flow_id]),
        name=None if flow_name is None else FlowFilterName(any_=[flow_name]),
    )
    tags = None if tag is None else DeploymentFilter(tags=DeploymentFilterTags(all_=[tag]))
    found: dict[UUID, DeploymentResponse] = {}
    page, offset = _PAGE, 0
    while page == _PAGE:
        some = await client.read_deployments(flow_filter=flow, deployment_filter=tags, limit=_PAGE, offset=offset)
        found.update((each.id, each) for each in some)
        page, offset = len(some), offset + len(some)
    return list(found.values())


async def work_pools_of(client: PrefectClient, names: Collection[str] | None = None) -> Sequence[WorkPool]:
    """The work pools of these names, or all.

    Raises:
        HTTPStatusError: the server does not answer.
    """
    which = None if names is None else WorkPoolFilter(name=WorkPoolFilterName(any_=list(names)))
    found: dict[str, WorkPool] = {}
    page, offset = _PAGE, 0
    while page == _PAGE:
        some = await client.read_work_pools(work_pool_filter=which, limit=_PAGE, offset=offset)
        found.update((each.name, each) for each in some)
        page, offset = len(some), offset + len(some)
    return list(found.values())


def status_of(error: BaseException) -> int | None:
    """The HTTP status with which the server answered; None for an error of another kind."""
    response = getattr(getattr(error, "http_exc", error), "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None
