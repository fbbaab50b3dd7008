"""Runs that run elsewhere, on a real server: who has a run, what becomes of it, and what if somebody dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Failed, Pending, Running
from routing import ENTRYPOINT, create, make_pools

from tao_flows.prefect.deploy import Wanted, deploy
from tao_flows.prefect.elsewhere import GROUP_TAG, REROUTED, RETURNED, SUBSTITUTE_TAG, mirror, send, siblings, stays
from tao_flows.prefect.server import runs_of

HOME, AWAY = "idle-blue", "idle-green"


@dataclass(frozen=True)
class Idle:
    """Two work pools that nobody polls: what becomes of a run there is ours to say."""

    client: PrefectClient
    home: DeploymentResponse
    away: DeploymentResponse

    async def run(self) -> FlowRun:
        return await create(self.client, self.home.id, in_s=3_600)

    async def sent(self) -> tuple[FlowRun, UUID]:
        """A run, and the one that runs in its place."""
        run = await self.run()
        substitute = await send(self.client, run, self.away, "cheaper there")
        assert substitute is not None
        return run, substitute

    async def look(self) -> None:
        """One look of each of three processes at the same time."""
        await asyncio.gather(*(mirror(self.client, [HOME]) for _ in range(3)))

    async def names(self, run_id: UUID) -> list[str | None]:
        return [state.name for state in await self.client.read_flow_run_states(run_id)]

    async def substitutes(self, run: FlowRun) -> int:
        found = await runs_of(self.client, tags=(SUBSTITUTE_TAG,))
        return sum(str(run.id) in str(each.idempotency_key) for each in found)


Scene = Callable[[Idle], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def deployments(server: str) -> tuple[UUID, UUID]:
    assert server
    asyncio.run(make_pools(HOME, AWAY))
    home, away = asyncio.run(deploy(Wanted(ENTRYPOINT, (HOME, AWAY), stem="idle")))
    return UUID(home.id), UUID(away.id)


@pytest.fixture
def play(deployments: tuple[UUID, UUID], ledger: object) -> Callable[[Scene], None]:
    """Plays a scene in a loop of its own."""

    async def playing(scene: Scene) -> None:
        async with get_client() as client:
            home, away = [await client.read_deployment(each) for each in deployments]
            await scene(Idle(client, home, away))

    return lambda scene: asyncio.run(playing(scene))


def test_the_substitute_is_like_the_run_and_marked_as_one(play: Callable[[Scene], None]) -> None:
    async def scene(idle: Idle) -> None:
        run, substitute_id = await idle.sent()
        substitute, run = await idle.client.read_flow_run(substitute_id), await idle.client.read_flow_run(run.id)
        assert (substitute.work_pool_name, substitute.name) == (AWAY, run.name)
        assert set(substitute.tags) == {*run.tags, SUBSTITUTE_TAG}
        assert stays(substitute)
        assert not stays(run)
        assert run.state_name == REROUTED
        assert run.state
        assert "cheaper there" in str(run.state.message)

    play(scene)


def test_of_a_worker_and_several_of_us_one_has_a_run(play: Callable[[Scene], None]) -> None:
    async def scene(idle: Idle) -> None:
        runs = [await idle.run() for _ in range(12)]

        async def worker(run: FlowRun) -> bool:
            said: Any = await idle.client.set_flow_run_state(run.id, Pending())
            return bool(said.status.value == "ACCEPT")

        async def ours(run: FlowRun) -> UUID | None:
            return await send(idle.client, run, idle.away, "cheaper there")

        for number, run in enumerate(runs):
            both: list[Awaitable[Any]] = [worker(run), ours(run), ours(run)]
            taken, *sent = await asyncio.gather(*(both if number % 2 else both[::-1]))
            taken, sent = (taken, sent) if number % 2 else (sent[-1], [taken, *sent[:-1]])
            got = {each for each in sent if each is not None}
            assert len(got) == (0 if taken else 1), await idle.names(run.id)
            await idle.look()
            assert await idle.substitutes(run) == len(got)

    play(scene)


@pytest.mark.parametrize("end", [Completed(message="well"), Failed(message="badly"), Cancelled(message="by someone")])
def test_the_end_of_the_substitute_is_the_end_of_the_run_once(play: Callable[[Scene], None], end: Any) -> None:
    async def scene(idle: Idle) -> None:
        run, substitute = await idle.sent()
        for state in (Pending(), Running()):
            await idle.client.set_flow_run_state(substitute, state)
        await idle.look()
        assert (await idle.client.read_flow_run(run.id)).state_name == REROUTED
        await idle.client.set_flow_run_state(substitute, end)
        await idle.look()
        await idle.look()
        assert await idle.names(run.id) == ["Scheduled", REROUTED, end.name]
        mirrored = (await idle.client.read_flow_run(run.id)).state
        assert mirrored is not None
        assert mirrored.message == end.message

    play(scene)


def test_a_run_that_is_cancelled_has_its_substitute_cancelled(play: Callable[[Scene], None]) -> None:
    async def scene(idle: Idle) -> None:
        (run, waiting), (other, running) = await idle.sent(), await idle.sent()
        for state in (Pending(), Running()):
            await idle.client.set_flow_run_state(running, state)
        for each in (run, other):
            await idle.client.set_flow_run_state(each.id, Cancelling())
        await idle.look()
        assert [(await idle.client.read_flow_run(each.id)).state_name for each in (run, other)] == ["Cancelled"] * 2
        assert await idle.names(waiting) == ["Scheduled", "Cancelled"]
        assert await idle.names(running) == ["Scheduled", "Pending", "Running", "Cancelling"], "its worker ends it"

    play(scene)


def test_who_dies_after_taking_a_run_is_taken_up_by_another_and_there_is_one_substitute(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(idle: Idle) -> None:
        run = await idle.run()

        async def dies(*_: object, **__: object) -> None:
            raise SystemExit

        with monkeypatch.context() as patched:
            patched.setattr(PrefectClient, "create_flow_run_from_deployment", dies)
            with pytest.raises(SystemExit):
                await send(idle.client, run, idle.away, "cheaper there")
        assert await idle.substitutes(run) == 0
        await idle.look()
        await idle.look()
        assert await idle.substitutes(run) == 1
        assert await idle.names(run.id) == ["Scheduled", REROUTED]

    play(scene)


def test_a_run_that_is_tried_again_gets_a_substitute_of_its_own(play: Callable[[Scene], None]) -> None:
    async def scene(idle: Idle) -> None:
        run, first = await idle.sent()
        await idle.client.set_flow_run_state(first, Failed())
        await idle.look()
        await idle.client.set_flow_run_state(run.id, AwaitingRetry())
        second = await send(idle.client, run, idle.away, "cheaper there")
        assert second not in {None, first}
        await idle.look()
        assert (await idle.client.read_flow_run(run.id)).state_name == REROUTED
        assert await idle.substitutes(run) == 2

    play(scene)


def test_a_run_that_the_other_deployment_does_not_take_stays_where_it_is(play: Callable[[Scene], None]) -> None:
    async def scene(idle: Idle) -> None:
        run = await idle.run()
        strict = DeploymentUpdate(
            enforce_parameter_schema=True,
            parameter_openapi_schema={  # type: ignore[arg-type]
                "type": "object", "properties": {"how": {"type": "integer"}}, "required": ["how"]
            },
        )  # fmt: skip
        before = DeploymentUpdate(parameter_openapi_schema=idle.away.parameter_openapi_schema)  # type: ignore[arg-type]
        await idle.client.update_deployment(idle.away.id, strict)
        try:
            assert await send(idle.client, run, idle.away, "cheaper there") is None
        finally:
            await idle.client.update_deployment(idle.away.id, before)
        returned = await idle.client.read_flow_run(run.id)
        assert returned.state_name == RETURNED
        assert stays(returned)
        assert await idle.substitutes(run) == 0

    play(scene)


def test_siblings_are_the_deployments_of_a_group_in_pools_that_are_served(play: Callable[[Scene], None]) -> None:
    async def scene(idle: Idle) -> None:
        assert set(await siblings(idle.client, idle.home.id)) == {HOME}, "no worker polls the other pool"

    play(scene)
    assert GROUP_TAG == "tao-group:", "who names siblings by a tag has written it"
