"""The desk against a real server, in this process: what it asks, who wins, and what becomes of runs when things fail."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from deferring import FLOWS, TAO_FLOWS, Site, all_are, names, read, states
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Pending, Scheduled
from proxy import Proxy, proxy_before

from tao_flows import runtime
from tao_flows.clock import SystemClock
from tao_flows.config import ConfigWatcher
from tao_flows.prefect import deciding, moves
from tao_flows.prefect import desk as desks
from tao_flows.prefect.api import Api
from tao_flows.prefect.desk import FlowDesk
from tao_flows.runtime import Tao
from tao_flows.units import NS_PER_S

T = TypeVar("T")


class JumpingClock(SystemClock):
    """The machine's, set forward or back."""

    def __init__(self) -> None:
        self.wall_off_s = self.monotonic_off_s = 0.0

    def wall_ns(self) -> int:
        return time.time_ns() + round(self.wall_off_s * NS_PER_S)

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() + round(self.monotonic_off_s * NS_PER_S)


@pytest.fixture(scope="module")
def site(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, UUID]]:
    """A site without any worker, and its deployment."""
    assert FLOWS.is_dir()
    made = Site(tmp_path_factory.mktemp("desk"), "desk-pool")
    yield made, made.set_up()
    made.close()


@pytest.fixture
def env(site: tuple[Site, UUID], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The site, its power dear for an hour, as this process's settings."""
    made = site[0]
    for name in ("TAO_FLOWS_CONFIG", "TAO_FLOWS_LEDGER"):
        monkeypatch.setenv(name, made.env[name])
    made.signal((-60, 500.0), (60, 20.0), (180, 500.0))
    monkeypatch.setattr(desks, "READ_S", 0.0)
    monkeypatch.setattr(desks, "REST_S", 0.0)
    monkeypatch.setattr(deciding, "AT_IT_S", 0.5)
    yield made
    made.clear()


@pytest.fixture
def tao(env: Site) -> Iterator[Tao]:
    made = runtime.build(ConfigWatcher(), JumpingClock())
    yield made
    made.ledger.close()


@asynccontextmanager
async def desk_of(tao: Tao, url: str | None = None) -> AsyncIterator[tuple[FlowDesk, Api]]:
    settings = {} if url is None else {PREFECT_API_URL: url}
    with temporary_settings(settings):
        # Longer than a desk has, for a machine that is busy with other tests.
        client = get_client(httpx_settings={"timeout": 60})
    assert isinstance(client, PrefectClient)
    async with client:
        api = Api(client)
        yield FlowDesk(tao, api, ["desk-pool"]), api


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


def run(body: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(body())  # type: ignore[arg-type]


def open_rows(tao: Tao, ids: list[UUID]) -> int:
    return sum(row.key.run_id in {str(each) for each in ids} for row in tao.admission.deferrals.open())


async def put_off(desk: FlowDesk, ids: list[UUID]) -> None:
    await desk.look_ahead(60)
    assert all_are(ids, "Deferred")


def test_a_run_is_put_off_and_brought_forward_by_two_calls_each(
    site: tuple[Site, UUID], env: Site, tao: Tao, server: str
) -> None:
    ids = env.create(site[1], 3, in_s=20)

    async def body(proxy: Proxy) -> None:
        async with desk_of(tao, proxy.url) as (desk, api):
            await put_off(desk, ids)
            assert open_rows(tao, ids) == 3
            assert proxy.count("set_state") == 6
            await desk.look_ahead(60)
            before = proxy.count()
            assert await desk.look() == 0
            assert proxy.count() - before <= 8, "reads, however much waits"
            assert proxy.count("set_state") == 6
            env.flip()
            await asyncio.sleep(1.1)
            assert await desk.look() == 3
            assert proxy.count("set_state") == 12
            assert all_are(ids, "Scheduled")
            # They have waited: they go on, and nobody puts them off once more.
            env.signal((-60, 500.0), (60, 20.0))
            await desk.look_ahead(60)
            assert all_are(ids, "Scheduled")
            assert open_rows(tao, ids) == 0
            assert proxy.count() <= api.calls + 12, "it counts its own calls"

    with proxy_before(server) as proxy:
        run(lambda: body(proxy))
    for run_id in ids:
        assert [state.name for state in states(run_id)] == ["Scheduled", "Pending", "Deferred", "Pending", "Scheduled"]
    waited = states(ids[0])[2]
    assert "at the latest" in waited.message
    assert "score" in waited.message
    assert 3_000 < (waited.state_details.scheduled_time - waited.timestamp).total_seconds() < 4_000


def test_of_two_desks_that_want_the_same_runs_none_loses_or_doubles_one(
    site: tuple[Site, UUID], env: Site, tao: Tao
) -> None:
    ids = env.create(site[1], 8, in_s=20)
    other = runtime.build(ConfigWatcher())

    async def body() -> None:
        async with desk_of(tao) as (one, _), desk_of(other) as (two, _):
            await asyncio.gather(one.look_ahead(60), two.look_ahead(60))
            assert all_are(ids, "Deferred")
            await asyncio.gather(one.look(), two.look())
            env.flip()
            await asyncio.sleep(1.1)
            moved = await asyncio.gather(one.look(), two.look())
            assert sum(moved) >= 8
            assert all_are(ids, "Scheduled")
            assert await one.look() + await two.look() == 0

    run(body)
    assert open_rows(tao, ids) == 0
    other.ledger.close()
    for run_id in ids:
        told = [state.name for state in states(run_id)]
        # Where both began at the very same moment the second did what the first had done.
        assert told.count("Deferred") in {1, 2}, told
        assert told.count("Scheduled") in {2, 3}, told


def test_a_run_that_a_worker_has_taken_is_left_to_it(site: tuple[Site, UUID], env: Site, tao: Tao) -> None:
    (taken,) = ids = env.create(site[1], 1, in_s=20)

    async def body() -> None:
        async with desk_of(tao) as (desk, api):
            due = await api.upcoming(["desk-pool"], 60)
            await api.client.set_flow_run_state(taken, Pending())
            await desk.consider([each for each in due if each.id == taken])
            assert all_are(ids, "Pending")
            assert [state.message for state in await api.client.read_flow_run_states(taken)][-1] is None
            await api.client.set_flow_run_state(taken, Cancelling())

    run(body)
    assert open_rows(tao, ids) == 0


def test_what_a_desk_that_died_has_taken_is_given_back_to_its_plan(
    site: tuple[Site, UUID], env: Site, tao: Tao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "REPAIR_S", 0.3)
    planned, new = env.create(site[1], 2, in_s=20)

    async def body() -> None:
        async with desk_of(tao) as (dead, api):
            await put_off(dead, [planned, new])
            with_plan, without = planned, new
            assert await api.take(with_plan)
            assert await api.take(without)
            assert await api.take(with_plan) is None, "it is taken"
            row = next(row for row in tao.admission.deferrals.open() if row.key.run_id == str(without))
            tao.admission.deferrals.gone(row.key)
        async with desk_of(tao) as (heir, _):
            await heir.look()
            assert all_are([planned, new], "Pending")
            await asyncio.sleep(0.4)
            await heir.look()
            assert all_are([planned], "Deferred")
            assert all_are([new], "Scheduled")

    run(body)
    assert open_rows(tao, [planned]) == 1


def test_while_the_api_answers_503_it_is_left_alone_as_long_as_it_asks_for_and_nothing_is_lost(
    site: tuple[Site, UUID], env: Site, tao: Tao, server: str
) -> None:
    ids = env.create(site[1], 2, in_s=20)

    async def body(proxy: Proxy) -> None:
        async with desk_of(tao, proxy.url) as (desk, api):
            # It falls silent between the two steps of the first run.
            asked = [0]

            def second_step(path: str) -> bool:
                asked[0] += "set_state" in path
                return asked[0] > 1

            proxy.refuse, proxy.retry_after = second_step, "2"
            await desk.look_ahead(60)
            assert 1.0 < api.paused_s <= 2.0
            before = proxy.count()
            for _ in range(3):
                await desk.look()
                await desk.look_ahead(60)
            assert proxy.count() == before, "nothing is asked in a pause"
            proxy.refuse = lambda path: False
            await asyncio.sleep(2.1)
            for _ in range(2):
                await desk.look()
                await desk.look_ahead(60)
            assert all_are(ids, "Deferred")
            env.flip()
            proxy.refuse, proxy.retry_after = lambda path: True, "1"
            await asyncio.sleep(1.1)
            assert await desk.look() == 0
            proxy.refuse = lambda path: False
            await asyncio.sleep(1.1)
            await desk.look()
            await desk.look()
            assert all_are(ids, "Scheduled")

    with proxy_before(server) as proxy:
        run(lambda: body(proxy))
    assert open_rows(tao, ids) == 0
    assert any(each.code == "PREFECT_API" for each in tao.incidents.of_run(""))


def test_a_clock_that_jumps_ahead_loses_no_run_and_one_set_back_keeps_none_beyond_its_latest_start(
    site: tuple[Site, UUID], env: Site, tao: Tao
) -> None:
    ahead, back = ids = env.create(site[1], 2, in_s=20)
    clock = tao.clock
    assert isinstance(clock, JumpingClock)

    async def body() -> None:
        async with desk_of(tao) as (desk, _):
            await put_off(desk, ids)
            clock.wall_off_s, clock.monotonic_off_s = -3 * 3_600, 2 * 3_600 + 60
            await desk.look()
            assert all_are(ids, "Scheduled")
        clock.wall_off_s = 0
        (again,) = env.create(site[1], 1, in_s=20)
        async with desk_of(tao) as (desk, _):
            await put_off(desk, [again])
            clock.wall_off_s = 3 * 3_600
            await desk.look()
            assert all_are([again], "Deferred"), "the server has the right time"
            clock.wall_off_s = 0
            env.flip()
            await asyncio.sleep(1.1)
            await desk.look()
            await desk.look()
            assert all_are([again], "Scheduled")

    run(body)
    assert "latest" in str(states(ahead)[-1].message)
    assert "latest" in str(states(back)[-1].message)


def test_without_its_signal_a_run_does_not_wait_on_and_a_provider_that_hangs_holds_nothing_up(
    site: tuple[Site, UUID], env: Site, tao: Tao, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ids = env.create(site[1], 1, in_s=20)
    with silent_server() as url:
        settings = (env.folder / "tao-flows.toml").read_text()
        hangs = settings.replace(
            'csv = "carbon.csv"', f'provider = "electricitymaps"\nkey_env = "EM_KEY"\nurl = "{url}"\nallow_http = true'
        ).replace('"pools.toml"', f'"{env.folder}/pools.toml"')
        (tmp_path / "hangs.toml").write_text(hangs)
        monkeypatch.setenv("TAO_FLOWS_CONFIG", str(tmp_path / "hangs.toml"))
        monkeypatch.setenv("EM_KEY", "secret")
        restarted = runtime.build(ConfigWatcher())

        async def body() -> None:
            async with desk_of(tao) as (desk, _):
                await put_off(desk, ids)
            async with desk_of(restarted) as (heir, _):
                begun_s = time.monotonic()
                await heir.look()
                assert time.monotonic() - begun_s < 60, "it never answers"
                assert all_are(ids, "Scheduled")

        run(body)
        restarted.ledger.close()


def test_release_drain_and_the_kill_switch_start_what_waits(site: tuple[Site, UUID], env: Site, tao: Tao) -> None:
    first, *_ = ids = env.create(site[1], 3, in_s=20)

    def command(*arguments: str) -> Any:
        said = subprocess.run([TAO_FLOWS, *arguments, "--json"], env=env.env, capture_output=True, text=True)
        return json.loads(said.stdout)

    settings = env.folder / "tao-flows.toml"
    text = settings.read_text()

    async def body() -> None:
        async with desk_of(tao) as (desk, _):
            await put_off(desk, ids)
            assert [each["run_id"] for each in command("release", str(first))["released"]] == [str(first)]
            await desk.look()
            assert names(ids) == {"Scheduled": 1, "Deferred": 2}
            assert all_are([first], "Scheduled")
            assert len(command("drain", "--wait", "0s")["released"]) == 2
            await desk.look()
            assert all_are(ids, "Scheduled")
            (fourth,) = env.create(site[1], 1, in_s=20)
            await desk.look_ahead(60)
            assert all_are([fourth], "Scheduled"), "nothing new waits"
            command("drain", "--undo")
            (fifth,) = env.create(site[1], 1, in_s=20)
            await put_off(desk, [fifth])
            settings.write_text(text.replace('mode = "enforce"\npools', 'mode = "off"\npools'))
            await asyncio.sleep(1.1)
            await desk.look()
            assert all_are([fifth], "Scheduled")

    try:
        run(body)
    finally:
        settings.write_text(text)
    assert tao.admission.deferrals.is_draining() is False


def test_what_is_cancelled_deleted_started_by_hand_or_wrongly_tagged_waits_no_more(
    site: tuple[Site, UUID], env: Site, tao: Tao
) -> None:
    ids = env.create(site[1], 2, in_s=20)
    wrong, cancelled = ids

    async def body() -> None:
        async with desk_of(tao) as (desk, api):
            await api.client.update_flow_run(wrong, tags=["tao:deferrable", "tao:deadlin=2h"])
            await desk.look_ahead(60)
            assert all_are([cancelled], "Deferred")
            assert all_are([wrong], "Scheduled")
            await api.client.set_flow_run_state(cancelled, Cancelling())
            await desk.look()
            await desk.look()
            (deleted, by_hand) = env.create(site[1], 2, in_s=20)
            await put_off(desk, [deleted, by_hand])
            await api.client.delete_flow_run(deleted)
            env.created.remove(deleted)
            await api.client.set_flow_run_state(by_hand, Scheduled())
            await asyncio.sleep(0.6)
            await desk.look()
            assert open_rows(tao, [deleted]) == 0
            await desk.look_ahead(60)
            assert all_are([by_hand], "Scheduled"), "somebody wants it now"

    run(body)
    assert all_are([cancelled], "Cancelled")
    assert open_rows(tao, [cancelled]) == 0
    assert [each.summary for each in tao.incidents.of_run(str(wrong)) if each.code == "UNKNOWN_OPTION"]


def test_a_start_that_the_server_has_too_early_is_put_off_to_the_plan(
    site: tuple[Site, UUID], env: Site, tao: Tao
) -> None:
    (run_id,) = ids = env.create(site[1], 1, in_s=20)

    async def body() -> None:
        async with desk_of(tao) as (desk, api):
            await put_off(desk, ids)
            (row,) = [row for row in tao.admission.deferrals.open() if row.key.run_id == str(run_id)]
            # The server's time is near, and the plan is not.
            assert await api.take(run_id)
            await api.give(run_id, time.time_ns() + 20 * NS_PER_S, "test")
            await desk.look()
            (now,) = read(ids)
            assert now.state_name == "Deferred"
            assert now.next_scheduled_start_time is not None
            assert abs(now.next_scheduled_start_time.timestamp() * NS_PER_S - row.start_wall_ns) < NS_PER_S
            assert replace(row, changed_wall_ns=0).start_wall_ns == row.start_wall_ns

    run(body)
