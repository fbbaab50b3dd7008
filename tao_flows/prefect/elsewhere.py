"""Flow runs that run elsewhere: a created run cannot change its work pool, so that another one takes its place.

A run that is to run in another pool becomes ``Pending(name="Rerouted")`` and gets a *substitute*: a run of the sibling
deployment there, with its parameters, tags and parent. What becomes of the substitute becomes of it; whoever waits for
it, or acts on its end, notices nothing else.

All there is to know is in the server, so that any process can go on where another one died, and several may look at
the same runs at once:

- Who takes a run first has it. Of a worker and us, one finds it taken: the run's history says who was first, also where
  Prefect lets the second overwrite the name of the first one's state.
- A run's substitute has an idempotency key of its own: however often it is created, there is one.
- A run's end is set under a transition id made of the substitute's: however often it is set, it ends once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID, uuid5

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, WorkPool, WorkPoolStatus
from prefect.client.schemas.responses import DeploymentResponse, OrchestrationResult
from prefect.states import Cancelled, Cancelling, Crashed, Pending, Scheduled

from tao_flows.errors import SourceError
from tao_flows.federation.descriptor import Descriptor
from tao_flows.prefect import partners
from tao_flows.prefect._compat import set_state_once
from tao_flows.prefect.partners import SUBSTITUTE_TAG
from tao_flows.prefect.places import pool_of
from tao_flows.prefect.server import deployments_of, runs_of, status_of, work_pools_of
from tao_flows.prefect.settings import tao_here

REROUTED: Final = "Rerouted"
"""The name of the state of a run whose substitute runs."""
RETURNED: Final = "Returned"
"""The name of the state of a run that could not run elsewhere, and is to run where it is."""
GROUP_TAG: Final = "tao-group:"
"""Deployments of one flow with the same such tag are siblings: the same work, each in a pool of its own."""
BETWEEN: Final = "@"
"""Deployments of one flow whose names are alike before it are siblings, too: ``nightly@blue`` and ``nightly@green``."""
SCHEDULED_LABEL: Final = "tao-flows.scheduled"
"""On the substitute of a run that a schedule started."""

_KEY: Final = "tao"
_SIBLINGS_S: Final = 10.0
"""How long siblings are remembered: they are asked for by every run that is looked at."""
_MOST_KEPT: Final = 1_000
_INTENT: Final = re.compile(r"\(deployment ([0-9a-f-]{36})(?: in (.+@[a-z0-9.-]+))?\)$")
"""What the state says of a run that is taken: the deployment, and the partner's pool that it is in, if it is one's."""
_REFUSED: Final = frozenset({400, 404, 409, 422})
"""Answers that no second attempt changes: the deployment is gone, or does not take these parameters or variables."""

_siblings: dict[tuple[str, UUID], tuple[float, Mapping[str, DeploymentResponse]]] = {}


def stays(flow_run: FlowRun) -> bool:
    """Whether a run is to start where it is, now: it has taken another's place, or could not be sent."""
    returned = flow_run.state is not None and flow_run.state.name == RETURNED
    return returned or SUBSTITUTE_TAG in flow_run.tags


def is_scheduled(flow_run: Any) -> bool:
    """Whether a schedule started the run, or the run whose place it takes."""
    return bool(getattr(flow_run, "auto_scheduled", False) or (getattr(flow_run, "labels", {})).get(SCHEDULED_LABEL))


async def siblings(client: PrefectClient, deployment_id: UUID) -> Mapping[str, DeploymentResponse]:
    """The deployments that do the same work, itself included, by their pool's id; one a pool.

    They are of the same flow, and have a tag ``tao-group:NAME`` in common or names that are alike before ``@``. Left out
    are those in a work pool that is paused or that no worker polls. Remembered for ``_SIBLINGS_S``.

    Raises:
        ObjectNotFound: there is no such deployment.
        HTTPStatusError: the server does not answer.
    """
    kept_at = (str(client.api_url), deployment_id)
    now_s, known = time.monotonic(), _siblings.get(kept_at)
    if known is None or now_s - known[0] >= _SIBLINGS_S:
        if len(_siblings) >= _MOST_KEPT:
            _siblings.clear()
        known = _siblings[kept_at] = (now_s, await _read_siblings(client, deployment_id))
    return known[1]


async def send(
    client: PrefectClient, flow_run: FlowRun, deployment: DeploymentResponse | Descriptor, message: str
) -> UUID | None:
    """Has a scheduled run's work done by a run of another deployment; the id of that run.

    None where the run was not to be had: a worker has it, it was cancelled, or the deployment takes no such run. In the
    last case it is ``Scheduled(name="Returned")``, to start where it is.

    Args:
        client: of the server.
        flow_run: the run; it must be scheduled.
        deployment: one of its siblings, or a partner's offer.
        message: why, for people.

    Raises:
        HTTPStatusError: the server does not answer. ``mirror`` goes on with what has begun.
    """
    fresh = await client.read_flow_run(flow_run.id)
    if fresh.state is None or not fresh.state.is_scheduled():
        return None
    if (intent := await _intent(deployment, fresh)) is None:
        return None
    intent = f"{message}{'; ' if isinstance(deployment, Descriptor) else ' '}{intent}"
    # Refused where the run is pending under the same name, running or cancelled.
    said: OrchestrationResult[Any] = await client.set_flow_run_state(fresh.id, Pending(name=REROUTED, message=intent))
    if said.state is None or said.state.name != REROUTED:
        return None
    substitute = await _substitute(client, fresh)
    return None if substitute is None else substitute.id


async def mirror(client: PrefectClient, pool_names: Collection[str]) -> None:
    """One look at the runs of these work pools that run elsewhere: what became of their substitutes becomes of them.

    Takes two calls of the API where there are none. A run that cannot be followed now is noted, and looked at next time.

    Raises:
        HTTPStatusError: the server does not answer.
    """
    ours = [
        run for run in await runs_of(client, names=(REROUTED, "Cancelling"), work_pool_names=pool_names) if run.state
    ]
    waiting = [run for run in ours if run.state is not None and run.state.name == REROUTED]
    keys = [_key(run) for run in waiting]
    found = {run.idempotency_key: run for run in await runs_of(client, keys=keys)} if keys else {}
    for run in waiting:
        with _noted("following a rerouted run", run):
            substitute = found.get(_key(run)) or await _substitute(client, run)
            if substitute is not None and substitute.state is not None and substitute.state.is_final():
                await _end(client, run, substitute.state, after=substitute.state)
                await _note_end(substitute)
    for run in ours:
        if run not in waiting:
            with _noted("cancelling a rerouted run", run):
                await _cancelled(client, run)
    await _stop_unwanted(client, pool_names)


async def _read_siblings(client: PrefectClient, deployment_id: UUID) -> Mapping[str, DeploymentResponse]:
    home = await client.read_deployment(deployment_id)
    alike = [each for each in await deployments_of(client, flow_id=home.flow_id) if groups_of(each) & groups_of(home)]
    pools = {pool.name: pool for pool in await work_pools_of(client, {str(each.work_pool_name) for each in alike})}
    found = {pool_of(home): home}
    for each in sorted(alike, key=lambda deployment: deployment.name):
        pool = pools.get(str(each.work_pool_name))
        if pool is not None and _is_served(pool):
            found.setdefault(pool_of(each), each)
    found.pop("", None)  # runs in no work pool
    return found


def groups_of(deployment: DeploymentResponse) -> set[str]:
    """What makes it a sibling of others; empty where nothing does."""
    stem, between, _ = deployment.name.rpartition(BETWEEN)
    tags = {tag for tag in deployment.tags if tag.startswith(GROUP_TAG)}
    return tags | {BETWEEN + stem} if between else tags


def _is_served(pool: WorkPool) -> bool:
    # Nobody polls a push pool or a managed one.
    needs_none = pool.type.endswith((":push", ":managed"))
    return not pool.is_paused and (needs_none or pool.status is not WorkPoolStatus.NOT_READY)


def _key(run: FlowRun) -> str:
    """The idempotency key of a rerouted run's substitute, another one when the run is retried.

    Its count of runs does not tell retries apart, as it never runs; the time it was scheduled for does, which Prefect
    copies into the state.
    """
    scheduled = None if run.state is None else run.state.state_details.scheduled_time
    return f"{_KEY}:{run.id}:{'' if scheduled is None else round(scheduled.timestamp() * 1e6)}"


def _original_id(substitute: FlowRun) -> UUID | None:
    prefix, _, rest = (substitute.idempotency_key or "").partition(":")
    try:
        return UUID(rest.partition(":")[0]) if prefix == _KEY else None
    except ValueError:
        return None


async def _substitute(client: PrefectClient, run: FlowRun) -> FlowRun | None:
    """The run that takes this one's place, created if it is not there; None where this one is not ours."""
    states = await client.read_flow_run_states(run.id)
    state = _taken_by_us(states)
    intent = None if state is None else _INTENT.search(state.message or "")
    if state is None or intent is None:
        return None
    run.state = state
    if intent[2]:
        return await _partners_run(client, run, intent[2], UUID(intent[1]))
    # Those that Prefect sets tell of the run's own deployment and worker.
    labels = {name: value for name, value in run.labels.items() if not name.startswith("prefect.")}
    if is_scheduled(run):
        labels[SCHEDULED_LABEL] = True
    try:
        return await client.create_flow_run_from_deployment(
            UUID(intent[1]),
            name=run.name,
            parameters=run.parameters,
            context=run.context,
            tags=[*run.tags, SUBSTITUTE_TAG],
            labels=labels,
            parent_task_run_id=run.parent_task_run_id,
            job_variables=run.job_variables,
            idempotency_key=_key(run),
        )
    except Exception as error:
        if status_of(error) not in _REFUSED:
            raise
        await _returned(client, run, error)
        return None


async def _returned(client: PrefectClient, run: FlowRun, error: Exception) -> None:
    _note("sending a run to another pool", error, run)
    message = f"Runs where it is: it could not be sent to another pool ({error})"
    await client.set_flow_run_state(run.id, Scheduled(name=RETURNED, message=message))


async def _intent(deployment: DeploymentResponse | Descriptor, run: FlowRun) -> str | None:
    """What is to be done with a run, in words that ``_INTENT`` reads; None where a partner does not answer."""
    if not isinstance(deployment, Descriptor):
        return f"(deployment {deployment.id})"
    if (tao := tao_here()) is None:
        return None
    try:
        deployment_id = await partners.deployment_at(tao, deployment)
    except SourceError as error:
        _note("sending a run to a partner", error, run)
        return None
    return f"{partners.waits_for(tao, deployment)} (deployment {deployment_id} in {deployment.id})"


async def _partners_run(client: PrefectClient, run: FlowRun, pool: str, deployment_id: UUID) -> FlowRun | None:
    if (tao := tao_here()) is None:
        return None
    try:
        return await partners.run_at(tao, run, pool, deployment_id, _key(run))
    except SourceError as error:
        if error.code == partners.GIVEN_UP and run.state is not None:
            _note("following a run at a partner", error, run)
            crashed: State[Any] = Crashed(message=f"{error.summary}; {error.remedy}")
            await _end(client, run, crashed, after=run.state)
            return None
        if error.code != partners.REFUSED:
            raise
        await _returned(client, run, error)
        return None


async def _note_end(substitute: FlowRun) -> None:
    if (tao := tao_here()) is not None and tao.config.partners:
        await partners.ended(tao, substitute)


def _taken_by_us(states: Sequence[State[Any]]) -> State[Any] | None:
    """The state by which a run became ours; None where somebody had taken it, or it has moved on.

    Since it was last scheduled there is nothing but that. Prefect lets a pending state be followed by another one of a
    different name: then a worker was first, and it is the worker's.
    """
    since: list[State[Any]] = []
    for state in states:
        since = [] if state.is_scheduled() else [*since, state]
    return since[-1] if since and all(state.name == REROUTED for state in since) else None


async def _end(client: PrefectClient, run: FlowRun, state: State[Any], *, after: State[Any]) -> None:
    """Ends a run in ``state``: once, however many see at the same time that ``after`` has come about."""
    await set_state_once(client, run.id, state, uuid5(run.id, str(after.id)))


async def _cancelled(client: PrefectClient, run: FlowRun) -> None:
    """Ends a run that was cancelled while it was rerouted: it has no process that could."""
    if run.start_time is not None or run.infrastructure_pid:
        return
    before = [state for state in await client.read_flow_run_states(run.id) if state.name != "Cancelling"]
    if before and before[-1].name == REROUTED and run.state is not None:
        await _end(client, run, Cancelled(message="Cancelled while it ran in another pool"), after=run.state)


async def _stop_unwanted(client: PrefectClient, pool_names: Collection[str]) -> None:
    """Cancels the substitutes of runs that have been cancelled, or given to somebody else."""
    active = {run.id: (run, _original_id(run)) for run in await runs_of(client, tags=(SUBSTITUTE_TAG,), active=True)}
    wanted_ids = [original_id for _, original_id in active.values() if original_id is not None]
    originals = {run.id: run for run in await runs_of(client, ids=wanted_ids)} if wanted_ids else {}
    for substitute, original_id in active.values():
        original = None if original_id is None else originals.get(original_id)
        if original is None or original.work_pool_name not in pool_names or not _is_unwanted(substitute, original):
            continue
        if substitute.state is None or substitute.state.is_cancelling():
            continue
        with _noted("cancelling a substitute", substitute):
            message = f"The run whose place it takes, {original.name}, is {str(original.state_name).lower()}"
            await client.set_flow_run_state(substitute.id, Cancelling(message=message))


def _is_unwanted(substitute: FlowRun, original: FlowRun) -> bool:
    state = original.state
    if state is None or state.is_cancelling() or state.is_cancelled():
        return state is not None
    # One that has ended otherwise leaves it alone: a person may have started the substitute once more.
    return not state.is_final() and substitute.idempotency_key != _key(original)


@contextmanager
def _noted(doing: str, run: FlowRun) -> Iterator[None]:
    """Notes what fails inside: the other runs are looked at all the same."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - it is looked at again next time
        _note(doing, error, run)


def _note(doing: str, error: Exception, run: FlowRun) -> None:
    if (tao := tao_here()) is not None:
        tao.incidents.note_error(doing, error, run_id=str(run.id))
