"""Deployments per pool, and flows and tasks that run in the pool that is decided on, with real workers of both."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flows import routed
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Pending, Running
from routing import ENTRYPOINT, HEARD_S, Site, create, make_pools, until
from support import ref

from tao_flows import runtime, tao_flow, tao_task
from tao_flows.errors import InputError
from tao_flows.ledger import open_ledger
from tao_flows.prefect.deploy import Deployed, Wanted, deploy
from tao_flows.prefect.elsewhere import GROUP_TAG, REROUTED, siblings
from tao_flows.prefect.route import aroute, route, serve
from tao_flows.prefect.server import runs_of

TAO_FLOWS = str(Path(sys.executable).with_name("tao-flows"))
BLUE, GREEN = "routing-blue", "routing-green"
NEAR, FAR = "unserved-blue", "unserved-green"
TASKS = tuple(routed.POOLS)


@pytest.fixture(scope="module")
def site(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert server
    made = Site(tmp_path_factory.mktemp("routing"), (BLUE, GREEN, NEAR, FAR, *TASKS))
    made.set_up()
    asyncio.run(make_pools(BLUE, GREEN, NEAR, FAR))
    yield made
    made.close()


@pytest.fixture
def here(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The site, with its settings in this process, and the power of zone A dear."""
    for name, value in site.settings.items():
        monkeypatch.setenv(name, value)
    site.dear("A")
    runtime.forget()
    yield site
    runtime.forget()


def deployed(pools: Sequence[str], stem: str = "tao", *tags: str) -> dict[str, Deployed]:
    return {each.pool: each for each in asyncio.run(deploy(Wanted(ENTRYPOINT, tuple(pools), stem, tags=tags)))}


def connected() -> AbstractContextManager[Any]:
    return get_client(sync_client=True)


def test_a_deployment_per_pool_is_made_once_with_the_options_of_the_flow_as_tags(here: Site) -> None:
    first = deployed([NEAR, FAR], "once")
    assert {pool: (each.what, each.name) for pool, each in first.items()} == {
        NEAR: ("created", f"routed/once@{NEAR}"),
        FAR: ("created", f"routed/once@{FAR}"),
    }
    assert {"tao:reroutable=true", "tao:max_defer=3600s", "tao:team=routers"} <= set(first[NEAR].tags)
    with connected() as client:
        client.create_deployment_schedules(UUID(first[NEAR].id), [(CronSchedule(cron="0 3 * * *"), False)])
    assert {each.what for each in deployed([NEAR, FAR], "once").values()} == {"unchanged"}
    changed = deployed([NEAR, FAR], "once", "tao:deadline=6h")
    assert {each.what for each in changed.values()} == {"updated"}
    with connected() as client:
        found = client.read_deployment(UUID(first[NEAR].id))
    assert "tao:deadline=6h" in found.tags
    assert len(found.schedules) == 1, "it was changed, not made anew"


def test_a_deployment_of_the_group_is_kept_as_it_is(here: Site) -> None:
    with connected() as client:
        flow_id = client.create_flow_from_name("routed")
        own = client.create_deployment(flow_id, "by-hand", work_pool_name=NEAR, tags=[f"{GROUP_TAG}group"])
    there = deployed([NEAR, FAR], "group")
    assert (there[NEAR].what, there[NEAR].id, there[FAR].what) == ("kept", str(own), "created")
    assert f"{GROUP_TAG}group" in there[FAR].tags, "or they would be no siblings"


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (f"{NEAR}/nihgtly", f"work pool '{NEAR}' has no queue 'nihgtly'; those that exist: default [UNKNOWN_QUEUE]"),
        ("unservd", "there is no work pool 'unservd'; those that exist: "),
    ],
)
def test_an_unknown_pool_or_queue_is_refused_with_those_that_exist_and_none_is_made(
    here: Site, pool: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tao_flows.cli._app import run

    with pytest.raises(SystemExit) as status:
        run(["prefect", "deploy", ENTRYPOINT, "--pool", FAR, "--pool", pool, "--name", "refused"])
    assert status.value.code == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told
    with connected() as client:
        assert [queue.name for queue in client.read_work_queues(work_pool_name=NEAR)] == ["default"]
        with pytest.raises(ObjectNotFound):
            client.read_deployment_by_name(f"routed/refused@{FAR}")


def test_the_command_says_what_it_did_as_json(here: Site) -> None:
    command = [TAO_FLOWS, "prefect", "deploy", ENTRYPOINT, "--pool", FAR, "--name", "told", "--param", "how=fail"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["deployments"]
    assert (row["what"], row["pool"], row["name"]) == ("created", FAR, f"routed/told@{FAR}")
    with connected() as client:
        assert client.read_deployment(UUID(row["id"])).parameters == {"how": "fail"}


def test_route_refuses_what_is_not_there(here: Site) -> None:
    made = deployed([NEAR, FAR], "refusing")
    with pytest.raises(InputError, match="UNKNOWN_DEPLOYMENT"):
        route("routed/nowhere")
    with pytest.raises(InputError, match=f"UNKNOWN_POOL.*{NEAR}"):
        route(made[NEAR].name, pools=["elsewhere"])
    with pytest.raises(InputError, match="work_queue_name"):
        route(made[NEAR].name, work_queue_name="typo")
    with pytest.raises(InputError, match="AMBIGUOUS_DEPLOYMENT"):
        route(routed.routed)


def test_who_is_stopped_while_it_waits_stops_the_run_and_its_options_go_along(here: Site) -> None:
    made = deployed([NEAR, FAR], "stopping", "tao:deadline=6h")

    async def scene() -> tuple[FlowRun, FlowRun]:
        async with get_client() as client:

            async def run() -> FlowRun:
                (found,) = await runs_of(client, tags=["stopped"])
                return await client.read_flow_run(found.id)

            routing = asyncio.create_task(aroute(made[NEAR].name, tags=["stopped"], deadline="2h", poll_interval=0.1))
            await until(lambda: _any(client, "stopped"), lambda: "the run")
            await asyncio.sleep(1)
            routing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await routing
            alone = await aroute(made[NEAR].name, timeout=0)
            return await run(), alone

    stopped, alone = asyncio.run(scene())
    assert stopped.state_name == "Cancelled"
    assert [tag for tag in stopped.tags if "deadline" in tag] == ["tao:deadline=7200s"], "nearer than the deployment's"
    assert alone.state_name == "Scheduled"


async def _any(client: PrefectClient, tag: str) -> bool:
    return bool(await runs_of(client, tags=[tag]))


@pytest.fixture(scope="module")
def flows(site: Site) -> dict[str, Deployed]:
    """A deployment in each of two pools: the worker of the one decides, the other's is Prefect's own."""
    made = deployed([BLUE, GREEN])
    worker = ["-m", "prefect", "worker", "start"]
    site.start(*worker, "--pool", BLUE, "--type", "tao-process", "--name", "deciding")
    site.start(*worker, "--pool", GREEN, "--type", "process")
    return made


def test_a_flow_leaves_a_dear_pool_ends_as_it_ends_elsewhere_and_comes_back_when_the_signal_flips(
    here: Site, flows: dict[str, Deployed]
) -> None:
    async def scene() -> None:
        async with get_client() as client:
            home = UUID(flows[BLUE].id)

            async def all_there() -> bool:
                return set(await siblings(client, home)) == {BLUE, GREEN}

            await until(all_there, lambda: "workers of both pools")
            well, badly, long = [await _sent(client, home, how, here) for how in ("", "fail", "stay")]
            routed_run = await aroute(flows[BLUE].name, poll_interval=0.3)

            seen: list[object] = []

            async def stays() -> bool:
                runs = await runs_of(client, tags=["tao-flows:substitute"])
                seen[:] = [(each.parameters, each.state_name, each.work_pool_name) for each in runs]
                return any(each.parameters.get("how") == "stay" and each.state_name == "Running" for each in runs)

            async def ended_so() -> bool:
                seen[:] = [(await client.read_flow_run(run.id)).state_name for run in (well, badly, long)]
                return seen == ["Completed", "Failed", "Cancelled"]

            await until(stays, lambda: f"the one that stays runs elsewhere; there are {seen}\n{here.said()}")
            await client.set_flow_run_state(long.id, Cancelling())
            await until(ended_so, lambda: f"three ends; they are {seen}\n{here.said()}")
            ended = (await client.read_flow_run(well.id)).state
            assert ended is not None
            assert await ended.aresult() == GREEN
            failed = (await client.read_flow_run(badly.id)).state
            assert failed is not None
            with pytest.raises(ValueError, match="as it was asked to"):
                await failed.aresult()
            assert REROUTED in [each.name for each in await client.read_flow_run_states(well.id)]
            assert routed_run.work_pool_name == GREEN

            here.dear("B")
            await asyncio.sleep(HEARD_S)
            back, asked = await create(client, home), asyncio.create_task(aroute(flows[BLUE].name, poll_interval=0.3))
            await until(lambda: _is(client, back, "Completed"), lambda: "the run that is at home")
            assert (await asked).work_pool_name == BLUE
            there = (await client.read_flow_run(back.id)).state
            assert there is not None
            assert await there.aresult() == BLUE

    asyncio.run(scene())


async def _sent(client: PrefectClient, home: UUID, how: str, here: Site) -> FlowRun:
    """A run that was sent away. Where the server is too slow to be asked, a run starts at home: then another is made."""
    for _ in range(3):
        run = await create(client, home, how)
        names: list[str] = []

        async def is_decided(run: FlowRun = run, names: list[str] = names) -> bool:
            names[:] = [each.name for each in await client.read_flow_run_states(run.id)]
            return REROUTED in names or "Running" in names

        await until(is_decided, lambda names=names: f"a run that goes on; it was {names}\n{here.said()}")  # type: ignore[misc]
        if REROUTED in names:
            return run
        assert "PREFECT_API" in here.said(), "it is sent away wherever the server answers"
        await client.set_flow_run_state(run.id, Cancelling())
    raise AssertionError(f"the server never answered in time\n{here.said()}")


async def _is(client: PrefectClient, run: FlowRun, name: str) -> bool:
    return (await client.read_flow_run(run.id)).state_name == name


def test_what_is_routed_is_shown_as_a_part_of_the_flow_that_asks(here: Site) -> None:
    made = deployed([NEAR, FAR], "parted")

    @tao_flow
    async def whole() -> FlowRun:
        return await aroute(made[NEAR].name, tags=["parted"], poll_interval=0.1)

    async def works() -> None:
        async with get_client() as client:
            await until(lambda: _any(client, "parted"), lambda: "the run")
            (run,) = await runs_of(client, tags=["parted"])
            for state in (Pending(), Running(), Completed(message="by hand")):
                await client.set_flow_run_state(run.id, state)

    async def scene() -> FlowRun:
        run, _ = await asyncio.gather(whole(), works())
        return run

    run = asyncio.run(scene())
    assert run.state
    assert (run.state.message, run.work_pool_name) == ("by hand", NEAR), "no worker polls the clean pool"
    assert run.parent_task_run_id is not None


@pytest.fixture(scope="module")
def task_workers(site: Site) -> None:
    for pool in TASKS:
        site.start("-m", "flows.routed", pool, WHERE=pool, PYTHONPATH=str(Path(__file__).parent))


def test_background_tasks_go_to_the_task_workers_of_the_clean_pool(here: Site, task_workers: None) -> None:
    assert task_workers is None
    served_by_both(here)
    assert routed.part.delay(1).result(60) == f"1 in {TASKS[1]}"
    with pytest.raises(ValueError, match="as it was asked to"):
        routed.part.apply_async(kwargs={"number": 1, "fail": True}).result(60)
    assert routed.parts([1, 2]) == ["9 in the flow's process", f"1 in {TASKS[1]}", f"2 in {TASKS[1]}"]
    assert routed.shared.delay(2).result(60) == f"2 in {TASKS[1]}"
    ledger = open_ledger(here.settings["TAO_FLOWS_LEDGER"])
    tasks = {task.key.instance: task.pool for run in ledger.runs() for task in ledger.tasks(ref(run))}
    moved = [each for run in ledger.runs() for each in ledger.decisions(ref(run)) if each.action == "reroute"]
    ledger.close()
    assert moved
    assert all(tasks[each.key.instance] == TASKS[1] for each in moved), "the decision is that of the task run"


def test_one_pools_result_does_for_another_only_where_that_was_asked_for(here: Site, task_workers: None) -> None:
    assert task_workers is None
    served_by_both(here)

    there = [f"1 in {TASKS[1]}", f"1 in {TASKS[1]}"]
    assert routed.twice(str(here.prepared("B")), HEARD_S) == [there, [f"1 in {TASKS[0]}", f"1 in {TASKS[1]}"]]


def served_by_both(here: Site) -> None:
    """Waits until the server knows the task workers of both pools."""

    async def both() -> bool:
        with connected() as client:
            workers = client.request("POST", "/task_workers/filter", json={}).json()
        keys = {key for worker in workers for key in worker["task_keys"]}
        return keys >= {f"{routed.part.task_key}@{pool}" for pool in TASKS}

    asyncio.run(until(both, lambda: (here.folder / "log-0").read_text()[-3000:]))


def test_what_is_wrong_with_pools_is_said_where_it_is_written() -> None:
    with pytest.raises(InputError, match="pools"):
        tao_task(pools="blue")
    with pytest.raises(InputError, match="share_cache"):
        tao_task(pools=["blue"], share_cache="yes")
    with pytest.raises(InputError, match="UNKNOWN_POOL"):
        serve(routed.part, pool="red")
    assert routed.part.with_options(retries=3).tao_pools.names == TASKS
