"""Flow runs that another organisation's Prefect server runs for us, by a deployment that its signed descriptor names.

What goes there is the run's name, its parameters and who sent it; no tags of ours, no job variables, no context. The
address and the key are those of our settings. What fails on the way there is a partner's failure, not our server's: it
is raised as ``SourceError``, and never takes our own server for silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Final, TypeVar
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed

from tao_flows.errors import SourceError
from tao_flows.federation.claims import ENDED, UNDER_WAY, Sent
from tao_flows.federation.descriptor import Descriptor
from tao_flows.federation.handover import SETTLED, Handover
from tao_flows.federation.records import FOR_TAG
from tao_flows.federation.store import Kept, PartnerStore
from tao_flows.ledger import codec
from tao_flows.options import made, of_tags
from tao_flows.partners import PartnerSpec
from tao_flows.prefect._compat import foreign_client
from tao_flows.prefect.server import runs_of, status_of
from tao_flows.prefect.settings import CONNECTIONS
from tao_flows.records import RunKey, TaskState, Who
from tao_flows.runtime import Tao
from tao_flows.units import NS_PER_S, format_duration

T = TypeVar("T")

ENGINE: Final = "prefect"
SUBSTITUTE_TAG: Final = "tao-flows:substitute"
"""On every run that takes another's place: nobody decides on it anew."""
LOST_S: Final = 120.0
"""A run that a partner could not be asked for within this time runs where it is."""
IN_FLIGHT_S: Final = 60.0
"""What a partner was asked for last may reach it so long after; two hosts' clocks may differ by most of it."""
ASK_S: Final = 10.0
"""The longest one call of a partner's API takes, whatever its server does."""
REST_S: Final = 8.0
"""A partner that did not answer is asked nothing for so long: its runs do not wait for each other's time-outs."""
REFUSED: Final = "PARTNER_REFUSED"
UNREACHABLE: Final = "PARTNER_UNREACHABLE"
GIVEN_UP: Final = "PARTNER_GIVEN_UP"
_ENDS: Final[Mapping[str, TaskState]] = {"COMPLETED": TaskState.COMPLETED, "CANCELLED": TaskState.CANCELLED}
_LATER: Final = frozenset({408, 425, 429})

_silent_s: dict[str, float] = {}
"""By address of a partner's API, when it last did not answer, on the monotonic clock."""


def reachable(tao: Tao, flow: str) -> dict[str, Descriptor]:
    """By pool, the trusted offers of partners to run a flow of this name."""
    found = [each.descriptor for each in tao.partners.usable(tao.config) if each.descriptor is not None]
    return {each.id: each for each in found if (each.endpoint.engine, each.endpoint.flow) == (ENGINE, flow)}


async def deployment_at(tao: Tao, offer: Descriptor) -> UUID:
    """The id of the deployment that an offer names.

    Raises:
        SourceError: it is not there, or the partner's server does not answer.
    """
    endpoint = offer.endpoint
    async with _client(tao, offer.org) as client:
        name = f"{endpoint.flow}/{endpoint.deployment}"
        return (await _asked(offer.org, lambda: client.read_deployment_by_name(name))).id


async def run_at(tao: Tao, run: FlowRun, pool: str, deployment_id: UUID, key: str) -> FlowRun:
    """The partner's run that takes a run's place, as it stands: created once, however often it is asked for.

    Args:
        tao: this process's.
        run: ours; its state is the one by which it was taken.
        pool: the partner's, by its id among ours.
        deployment_id: at the partner's.
        key: the idempotency key.

    Raises:
        SourceError: PARTNER_REFUSED, it is certainly not there, and is to run here; PARTNER_GIVEN_UP, it may be there,
            and nothing has been heard of it for as long as the settings say; another code where it may be heard of later.
        LedgerError: the ledger cannot be read or written.
    """
    org = pool.rpartition("@")[2]
    handover = Handover(tao.ledger, org, key)
    try:
        found = await _found_at(tao, run, pool, deployment_id, handover)
    except SourceError as error:
        bound_s = _bound_s(tao, org)
        if error.code == REFUSED or await asyncio.to_thread(handover.silent_s) < bound_s:
            raise
        summary = f"nothing has been heard of the run at {org} for {format_duration(bound_s)}"
        remedy = "it may be going on there, so that it is not started here; it is stopped there once they answer"
        raise SourceError(GIVEN_UP, f"{summary}: {error.summary}", remedy) from error
    await asyncio.to_thread(handover.heard)
    return found


def waits_for(tao: Tao, offer: Descriptor) -> str:
    """What a state says of a run that is given to a partner."""
    endpoint, bound = offer.endpoint, format_duration(_bound_s(tao, offer.org))
    there = f"{endpoint.flow}/{endpoint.deployment}"
    return f"waits for {there} at {offer.org}, and ends as crashed if nothing is heard of it there for {bound}"


async def _found_at(tao: Tao, run: FlowRun, pool: str, deployment_id: UUID, handover: Handover) -> FlowRun:
    """``run_at``, of one look."""
    org = handover.org
    sent = await asyncio.to_thread(_sent, tao, str(run.id), org)
    if sent is not None:
        with _in_doubt():
            async with _client(tao, org) as client:
                return await _as_it_stands(client, sent)
    offer = await asyncio.to_thread(tao.partners.find, tao.config, pool)
    taken_at = None if run.state is None else run.state.timestamp
    age_s = 0.0 if taken_at is None else (datetime.now(timezone.utc) - taken_at).total_seconds()
    if (offer is None or age_s > LOST_S) and await asyncio.to_thread(handover.keep):
        why = f"{pool} is not trusted any more" if offer is None else f"{org} did not answer in {LOST_S:g} s"
        raise SourceError(REFUSED, why, "it was not asked to run it; see: tao-flows pools ls")
    with _in_doubt():
        async with _client(tao, org) as client:
            if offer is not None and age_s <= LOST_S:
                found = await _ask_for(client, tao, run, offer, deployment_id, handover)
            else:
                found = await _look_for(client, tao, handover, is_late=age_s > LOST_S + IN_FLIGHT_S)
    if isinstance(found, SourceError):
        raise found
    return found


async def _ask_for(
    client: PrefectClient, tao: Tao, run: FlowRun, offer: Descriptor, deployment_id: UUID, handover: Handover
) -> FlowRun | SourceError:
    """The run, created if need be; an error where it is certainly not there."""
    first = await asyncio.to_thread(handover.ask, codec.dump(_as_sent(tao, run, offer)))
    if first is None:
        return SourceError(REFUSED, "it is to start here")
    try:
        created = await _asked(
            offer.org,
            lambda: client.create_flow_run_from_deployment(
                deployment_id,
                name=run.name,
                parameters=run.parameters,
                tags=[SUBSTITUTE_TAG, f"{FOR_TAG}{tao.config.org}"],
                idempotency_key=_key_at(tao, handover),
            ),
        )
    except SourceError as error:
        # Of a run that was asked for before, a refusal says nothing.
        if error.code != REFUSED or not first:
            raise
        await asyncio.to_thread(handover.settle)
        return error
    if created.idempotency_key != _key_at(tao, handover):
        raise SourceError(UNREACHABLE, f"{offer.org} answers with another run", "it is asked again")
    await asyncio.to_thread(_confirmed, tao, handover, created)
    return created


async def _look_for(client: PrefectClient, tao: Tao, handover: Handover, *, is_late: bool) -> FlowRun | SourceError:
    """A run that was asked for and not confirmed; an error where it is certainly not there."""
    org, key = handover.org, _key_at(tao, handover)
    there = [run for run in await _asked(org, lambda: runs_of(client, keys=[key])) if run.idempotency_key == key]
    if there:
        await asyncio.to_thread(_confirmed, tao, handover, there[0])
        return there[0]
    if not is_late:  # what was asked last may be on its way
        raise SourceError(UNREACHABLE, f"{org} does not have the run yet", "it is asked again")
    await asyncio.to_thread(handover.settle)
    return SourceError(REFUSED, f"{org} does not have the run")


def _confirmed(tao: Tao, handover: Handover, created: FlowRun) -> None:
    """Takes note of the partner's run."""
    asked = PartnerStore(tao.ledger).find("asked", handover.org, handover.key)
    if asked is not None:
        sent = codec.load(Sent, asked.body)
        tao.claims.begun(replace(sent, key=replace(sent.key, instance=str(created.id))))
        handover.settle()


def _key_at(tao: Tao, handover: Handover) -> str:
    """The idempotency key at the partner's."""
    return f"{tao.config.org}:{handover.key}"


def _bound_s(tao: Tao, org: str) -> float:
    return tao.config.partners.get(org, PartnerSpec(org)).give_up_after_s


async def follow(tao: Tao, client: PrefectClient, pool_names: Collection[str] | None) -> None:
    """Stops what nobody wants any more at partners, and looks for the records of what has ended there.

    Args:
        tao: this process's.
        client: of our own server.
        pool_names: the work pools that are looked after; None for all.

    Raises:
        HTTPStatusError: our server does not answer.
        LedgerError: the ledger cannot be read or written.
    """
    config = tao.config
    if not config.partners:
        return
    store = PartnerStore(tao.ledger)
    asked = [each for each in await asyncio.to_thread(store.sent, SETTLED, "asked") if each.body]
    sent = await asyncio.to_thread(store.sent, ENDED)
    rows = [(row, codec.load(Sent, row.body)) for row in (*asked, *sent)]
    ours = [(row, each) for row, each in rows if each.key.engine == ENGINE]
    ids = {UUID(each.key.run_id) for _, each in ours}
    found = {str(run.id): run for run in await runs_of(client, ids=ids)} if ids else {}
    for row, each in ours:
        run = found.get(each.key.run_id)
        mine = run is not None and (pool_names is None or run.work_pool_name in pool_names)
        # One that waits for a partner's is pending.
        if run is not None and mine and run.state is not None and not run.state.is_pending():
            await (_let_go(tao, each, run) if row.kind == "sent" else _catch_up(tao, row, each))
    await asyncio.to_thread(tao.claims.collect, config)


async def ended(tao: Tao, run: FlowRun) -> None:
    """Takes note of the end of a partner's run, so that its record is looked for. It may be noted twice.

    Raises:
        LedgerError: the ledger cannot be written.
    """
    rows = await asyncio.to_thread(PartnerStore(tao.ledger).sent, ENDED)
    org = next((row.org for row in rows if row.name == str(run.id)), "")
    if org and run.state is not None:
        state = _ENDS.get(run.state.type.value, TaskState.FAILED)
        await asyncio.to_thread(tao.claims.ended, org, str(run.id), state)


async def _let_go(tao: Tao, sent: Sent, run: FlowRun) -> None:
    """Stops a partner's run whose place in our server nobody holds any more; takes note of its end where it has one."""
    try:
        async with _client(tao, sent.org) as client:
            there = await _as_it_stands(client, sent)
            state = there.state
            if state is not None and state.is_final():
                await ended(tao, there)
            elif state is not None and not state.is_cancelling():
                message = f"The run whose place it takes, {run.name}, is {str(run.state_name).lower()}"
                cancelling: State[Any] = Cancelling(message=message)
                await _asked(sent.org, lambda: client.set_flow_run_state(there.id, cancelling))
    except SourceError as error:  # it is looked at again
        tao.incidents.note_error("stopping a run at a partner", error, run_id=sent.key.run_id)


async def _catch_up(tao: Tao, row: Kept, sent: Sent) -> None:
    """Looks for a run that a partner may have, and that nobody wants any more; what is found is stopped at the next look."""
    is_late = tao.clock.wall_ns() - sent.sent_wall_ns > IN_FLIGHT_S * NS_PER_S
    try:
        async with _client(tao, row.org) as client:
            await _look_for(client, tao, Handover(tao.ledger, row.org, row.name), is_late=is_late)
    except SourceError as error:  # it is looked for again
        tao.incidents.note_error("looking for a run at a partner", error, run_id=sent.key.run_id)


async def _as_it_stands(client: PrefectClient, sent: Sent) -> FlowRun:
    try:
        found = await _asked(sent.org, lambda: client.read_flow_run(UUID(sent.remote_id)))
    except SourceError as error:
        if error.code != REFUSED or not isinstance(error.__cause__, ObjectNotFound):
            raise
    else:
        if str(found.id) != sent.remote_id:
            raise SourceError(UNREACHABLE, f"{sent.org} answers with another run", "it is asked again")
        return found
    # Deleted there: it never ends by itself any more.
    gone: State[Any] = Crashed(message=f"{sent.org} has deleted the run")
    return FlowRun(id=UUID(sent.remote_id), flow_id=UUID(int=0), name=sent.name, state=gone)


@asynccontextmanager
async def _client(tao: Tao, org: str) -> AsyncIterator[PrefectClient]:
    """A client of a partner's server.

    Raises:
        SourceError: the settings name no such server, its key is not to be had, or it does not answer.
    """
    spec = tao.config.partners.get(org)
    if spec is None or not spec.api_url:
        raise SourceError(REFUSED, f"the settings name no API of {org}", f"set api_url in [partners.{org}]")
    if time.monotonic() - _silent_s.get(spec.api_url, -REST_S) < REST_S:
        raise SourceError(UNREACHABLE, f"{org} did not answer a moment ago", "it is asked again")
    key = await asyncio.to_thread(CONNECTIONS.partner_key, spec)
    client = foreign_client(spec.api_url, key, spec.user)
    try:
        await _asked(org, client.__aenter__)
        try:
            yield client
        finally:
            await client.__aexit__(None, None, None)
    except SourceError as error:
        if error.code == UNREACHABLE and error.__cause__ is not None:
            _silent_s[spec.api_url] = time.monotonic()
        raise


async def _asked(org: str, ask: Callable[[], Awaitable[T]]) -> T:
    try:
        with anyio.fail_after(ASK_S):
            return await ask()
    except Exception as error:
        status = status_of(error)
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if status is not None and 400 <= status < 500 and status not in _LATER:
            remedy = "see that its deployment is there, and takes this key and these parameters"
            raise SourceError(REFUSED, f"{org} refuses: {said}", remedy) from error
        raise SourceError(UNREACHABLE, f"{org} does not answer: {said}", "it is asked again") from error


@contextmanager
def _in_doubt() -> Iterator[None]:
    """What is refused inside says nothing of whether the partner has a run: the key may have ended, or the settings changed."""
    try:
        yield
    except SourceError as error:
        if error.code != REFUSED:
            raise
        raise SourceError(UNREACHABLE, error.summary, error.remedy) from error


def _sent(tao: Tao, run_id: str, org: str) -> Sent | None:
    """What was sent in the place of a run and has not ended."""
    for row in PartnerStore(tao.ledger).sent(ENDED):
        if row.org == org and row.seq == UNDER_WAY:
            sent = codec.load(Sent, row.body)
            if sent.key.run_id == run_id:
                return sent
    return None


def _as_sent(tao: Tao, run: FlowRun, offer: Descriptor) -> Sent:
    """What is to be known of a run; its id there comes when it is confirmed."""
    config = tao.config
    options = made(of_tags(run.tags))
    flow = offer.endpoint.flow
    return Sent(
        key=RunKey(ENGINE, config.namespace, flow, str(run.id), flow, "", run.run_count + 1),
        org=offer.org,
        pool=offer.id,
        flow=flow,
        sent_wall_ns=tao.clock.wall_ns(),
        segment=tao.segment,
        who=config.who.overlay(Who.of_tags(run.tags)).overlay(options.who),
        name=run.name,
        budget=options.budget if isinstance(options.budget, str) else "",
    )
