"""What people see in Airflow's own UI, in a real browser: the tabs, the navigation, the button on a task."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral, HostAccount, RunKey, RunRecord, Segment, TaskRecord, TaskState

pytestmark = [pytest.mark.airflow, pytest.mark.chromium]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Read before a test starts: none of them sees the settings of the person who runs it.
SCREENSHOTS = os.environ.get("TAO_FLOWS_SCREENSHOTS", "")
S = 10**9
NOW = time.time_ns()
DAG_ID = "forecast"
RUN_ID = "manual__2026-01-01T00:00:00+00:00"
DAG = f"""
from airflow.sdk import dag, task

@dag("{DAG_ID}", schedule=None)
def forecast():
    @task
    def load(): ...
    @task
    def train(n): ...
    @task
    def choose(): ...
    load() >> train.expand(n=[1, 2, 3]) >> choose()

forecast()
"""
TASKS = (("load", -1, 0, 8, 95.0), ("train", 0, 8, 30, 900.0), ("train", 1, 8, 34, 1040.0), ("train", 2, 9, 31, 870.0))


@dataclass
class Site:
    """An API server, with a run that the ledger knows."""

    address: str
    ledger: Ledger
    token: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    (home / "dags").mkdir()
    (home / "dags/forecast.py").write_text(DAG)
    (home / "passwords.json").write_text('{"ada": "password"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"sqlite:///{home}/ledger.db"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "TAO_FLOWS_"))},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ada:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__API__SECRET_KEY": "of this test alone",
        "AIRFLOW__API_AUTH__JWT_ISSUER": "tests",
        "AIRFLOW__API_AUTH__JWT_SECRET": "known to nobody else, and long enough for its algorithm: 512 bits" * 2,
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__TAO_FLOWS__LEDGER": url,
        "TAO_FLOWS_AGENT": "off",
    }
    for command in (("db", "migrate"), ("dags", "reserialize")):
        _airflow(env, *command)
    log = (home / "api-server.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        env=env, stdout=log, stderr=subprocess.STDOUT, cwd=home,
    )  # fmt: skip
    ledger = open_ledger(url)
    try:
        address = f"http://127.0.0.1:{port}"
        token = _until_it_answers(server, address, home / "api-server.log")
        run = {"dag_run_id": RUN_ID, "logical_date": None, "conf": {}}
        _post(f"{address}/api/v2/dags/{DAG_ID}/dagRuns", run, token)
        record(ledger)
        yield Site(address, ledger, token)
    finally:
        server.terminate()
        server.wait(30)
        log.close()
        ledger.close()


def record(ledger: Ledger) -> None:
    """A run with a mapped task that is still waiting for one of its parts."""
    segment = Segment("node-1", "boot", 1, 1)
    begin_ns = NOW - 120 * S
    ledger.put_run(RunRecord("airflow", "default", DAG_ID, RUN_ID, "running", begin_ns, segment, name=RUN_ID))
    for number, (task, index, start_s, end_s, energy_j) in enumerate(TASKS, 2):
        energy_uj = round(energy_j * 1e6)
        figure = Figure(energy_uj, energy_uj * 9 // 10, energy_uj * 11 // 10, Quality.ATTRIBUTED, ("rapl",))
        start_ns, seconds = begin_ns + start_s * S, float(end_s - start_s)
        measured = Measurement(task, start_ns, seconds, CpuTime(seconds * 0.9, "perf", True), figure, (), Account())
        key = RunKey("airflow", "default", DAG_ID, RUN_ID, task, str(index), 1)
        ledger.put_task(
            TaskRecord(
                key, Segment("node-1", "boot", number, 1), TaskState.COMPLETED, start_ns, pool="local",
                ended_wall_ns=begin_ns + end_s * S, measurement=measured, map_index=None if index < 0 else index,
            )
        )  # fmt: skip
    account = Account(tasks_uj=2_905_000_000, overhead_uj=60_000_000, idle_uj=410_000_000, unattributed_uj=35_000_000)
    ledger.put_account(RunRef("airflow", "default", RUN_ID, DAG_ID), HostAccount("node-1", account, 60.0, "run"))
    key = RunKey("airflow", "default", DAG_ID, RUN_ID, "choose", "-1", 1)
    planned = Deferral(key, "local", NOW - 60 * S, NOW + 3600 * S, NOW + 4 * 3600 * S, "less carbon at 02:00")
    assert DeferralStore(ledger).plan(planned)


def _airflow(env: dict[str, str], *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "airflow", *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def _post(address: str, body: object, token: str = "") -> Any:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def _until_it_answers(server: subprocess.Popen[bytes], address: str, log: Path) -> str:
    give_up_s = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < give_up_s:
        try:
            answer = _post(f"{address}/auth/token", {"username": "ada", "password": "password"})
            return str(answer["access_token"])
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(log.read_text(errors="replace")[-4000:])


@dataclass
class Viewer:
    """Airflow's UI in a browser, and what went wrong in it."""

    page: Any
    site: Site
    problems: set[str] = field(default_factory=set)

    def goto(self, path: str) -> None:
        self.page.goto(self.site.address + path)

    def frame(self, title: str = "Energy") -> Any:
        """Our page inside Airflow's."""
        return self.page.frame_locator(f'iframe[title="{title}"]')

    def shoot(self, name: str) -> None:
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(SCREENSHOTS, f"{name}.png"))


@contextmanager
def viewer(site: Site, scheme: str = "light", height: int = 1000) -> Iterator[Viewer]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            context = browser.new_context(viewport={"width": 1440, "height": height}, color_scheme=scheme)
            context.add_cookies([{"name": "_token", "value": site.token, "url": site.address}])
            page = context.new_page()
            page.set_default_timeout(60_000)
            seen = Viewer(page, site)
            page.route("**/*", lambda route: _local_only(route, seen))
            page.on("console", lambda said: seen.problems.add(said.text) if _is_ours(said) else None)
            yield seen
        finally:
            browser.close()


def _is_ours(said: Any) -> bool:
    return said.type == "error" and "/tao/" in said.location["url"]


def _local_only(route: Any, seen: Viewer) -> None:
    url = route.request.url
    if url.startswith((seen.site.address, "data:", "blob:")):
        route.continue_()
        return
    if "/tao/" in (route.request.frame.url or ""):
        seen.problems.add(f"our page asks for {url}")
    route.abort()


RUN_PATH = f"/dags/{DAG_ID}/runs/{quote(RUN_ID, safe='')}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tab_of_a_dag_run_shows_its_energy(site, scheme):
    with viewer(site, scheme) as seen:
        seen.goto(RUN_PATH)
        seen.page.get_by_role("tab", name="Energy").or_(seen.page.get_by_role("link", name="Energy")).last.click()
        seen.frame().get_by_text(DAG_ID).first.wait_for()
        text = seen.frame().locator("body").inner_text()
        assert "attributed" in text
        assert "train" in text
        seen.shoot(f"airflow-run-{scheme}")
        wide = seen.frame().locator("html").evaluate("page => page.scrollWidth - page.clientWidth")
        assert wide <= 0, "nothing runs off the side of the page"
        assert not seen.problems


def test_the_tab_of_a_task_opens_the_run_at_the_task(site):
    with viewer(site) as seen:
        seen.goto(f"{RUN_PATH}/tasks/load/plugin/tao-task")
        row = seen.frame().locator('[id="task-load"]')
        row.wait_for()
        assert row.is_visible(), "what the task's row holds is open"
        seen.shoot("airflow-task")
        assert not seen.problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_navigation_leads_to_the_fleet_and_its_filters_to_an_address(site, scheme):
    with viewer(site, scheme) as seen:
        seen.goto("/")
        seen.page.get_by_text("Energy", exact=True).first.click()
        seen.frame().get_by_role("link", name=DAG_ID).first.wait_for()
        seen.shoot(f"airflow-fleet-{scheme}")
        wide = seen.frame().locator("html").evaluate("page => page.scrollWidth - page.clientWidth")
        assert wide <= 0, "nothing runs off the side of the page"
        seen.frame().get_by_label("since").select_option("24h")
        seen.frame().get_by_role("button", name="Show").click()
        seen.page.wait_for_url("**/plugin/tao-fleet/**since=24h**")
        assert not seen.problems


def test_the_button_on_a_task_opens_the_page_of_its_run(site):
    with viewer(site) as seen:
        seen.goto(f"{RUN_PATH}/tasks/load/details")
        button = seen.page.locator(f'a[href*="/tao/run/{DAG_ID}/"]')
        button.wait_for()
        seen.goto(button.get_attribute("href"))
        seen.page.get_by_role("heading", name=DAG_ID).wait_for()
        assert seen.page.url.endswith("#task-load")


def test_what_waits_is_released_from_the_tab(site):
    with viewer(site) as seen:
        seen.goto(f"{RUN_PATH}/plugin/tao-run")
        seen.frame().get_by_role("button", name="Release").first.click()
        seen.frame().get_by_text("Released forecast").wait_for()
        seen.shoot("airflow-released")
        assert not seen.problems
    found = DeferralStore(site.ledger).open(RunRef("airflow", "default", RUN_ID, DAG_ID))
    assert [(each.state, each.said_by) for each in found] == [("released", "ada: in Airflow's UI")]
