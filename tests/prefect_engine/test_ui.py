"""What people see of a run in Prefect's own UI, both versions of it, in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from deferring import Site, all_are, until
from nightly import nightly, release_when_waiting, settings
from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.context import get_run_context
from support import burn, only_run

from prefect_blocks import CarbonSignal, EnergyBudget, LedgerUrl, TaoController, WorkerPoolProfile
from tao_flows import runtime, tao_flow, tao_task
from tao_flows.ledger.base import Ledger
from tao_flows.report.model import read_report
from tao_flows.report.text import energy_text
from tao_flows.units import format_energy

pytestmark = pytest.mark.chromium
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Read before a test starts: none of them sees the settings of the person who runs it.
SCREENSHOTS = os.environ.get("TAO_FLOWS_SCREENSHOTS", "")
ROOTS = {"v1": "", "v2": "/v2"}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


@tao_task
def load() -> list[int]:
    burn(0.05)
    return list(range(4))


@tao_task(task_run_name="train model {n}", budget="40 J")
def train(n: int) -> int:
    burn(0.05 * (n + 1))
    return n


@tao_task
def choose(models: list[int]) -> int:
    return max(models)


@tao_flow(name="look at me", team="seers")
def looked_at() -> int:
    return choose(train.map(load()).result())


@flow(name="plain")
def plain() -> str:
    """Artifacts of the same kinds without us: what goes wrong with these is Prefect's own."""
    create_markdown_artifact(f"# Plain\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n![dot]({PIXEL})", key="plain-page")
    create_table_artifact([{"a": "only cell"}], key="plain-table")
    return str(get_run_context().flow_run.id)


@dataclass
class Viewer:
    """A page of the UI, and what went wrong on it."""

    page: Any
    address: str
    ui: str
    problems: set[str] = field(default_factory=set)

    def tab(self, run_id: str) -> None:
        """Opens the Artifacts tab of a flow run."""
        self.page.goto(f"{self.address}{ROOTS[self.ui]}/runs/flow-run/{run_id}?tab=Artifacts")
        # V1 forgets the tab named in the address while it loads the run.
        self.page.get_by_text("Artifacts", exact=True).last.click()

    def artifact(self, artifact_id: str) -> None:
        """Opens an artifact's own page."""
        self.page.goto(f"{self.address}{ROOTS[self.ui]}/artifacts/artifact/{artifact_id}")

    def shot(self, name: str, elsewhere: Path) -> None:
        """A picture of the page, where pictures are asked for."""
        folder = Path(SCREENSHOTS or elsewhere)
        folder.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(500)  # what is still being drawn
        self.page.screenshot(path=folder / f"{self.ui}-{name}.png", full_page=True)

    def charts(self, number: int) -> Any:
        """The charts of the page, once all of them are there: V2 puts them in after the headings."""
        found = self.page.locator("img[src^='data:image/svg']")
        found.nth(number - 1).wait_for(state="attached")
        assert found.count() == number
        return found

    def text(self) -> str:
        return str(self.page.locator("body").inner_text()).replace("\u00a0", " ")


def ids_of(run_id: str) -> dict[str, str]:
    """By key, the ids of a flow run's artifacts."""
    which = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        return {artifact.key: str(artifact.id) for artifact in client.read_artifacts(artifact_filter=which)}


@contextmanager
def viewer(server: str, ui: str) -> Iterator[Viewer]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    address = server.removesuffix("/api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(60_000)
            seen = Viewer(page, address, ui)
            page.route("**/*", lambda route: _local_only(route, address))
            page.on("pageerror", lambda error: seen.problems.add(str(error)))
            page.on("console", lambda said: seen.problems.add(said.text) if _is_problem(said) else None)
            yield seen
        finally:
            browser.close()


def _local_only(route: Any, address: str) -> None:
    url = route.request.url
    if url.startswith((address, "data:", "blob:")):
        route.continue_()
    else:
        route.abort()


def _is_problem(said: Any) -> bool:
    # Icons that the UI itself lacks, and what it asks of other hosts.
    missing = said.text.startswith("Failed to load resource") and said.location["url"].startswith("http")
    return said.type == "error" and not missing


@pytest.mark.parametrize("ui", list(ROOTS))
def test_the_artifacts_of_a_run_show_its_joules_and_its_chart_and_break_nothing(
    server: str, ledger: Ledger, tmp_path: Path, ui: str
) -> None:
    assert looked_at() == 3
    report = read_report(ledger, only_run(ledger))
    plain_id = plain()
    ours, theirs = ids_of(report.run.run_id), ids_of(plain_id)
    pictures = Path(SCREENSHOTS or tmp_path)
    pictures.mkdir(parents=True, exist_ok=True)

    with viewer(server, ui) as seen:
        seen.tab(plain_id)
        seen.page.get_by_text("plain-table", exact=True).last.wait_for()
        seen.artifact(theirs["plain-page"])
        seen.page.get_by_role("heading", name="Plain").wait_for()
        seen.artifact(theirs["plain-table"])
        seen.page.locator("td", has_text="only cell").first.wait_for()
        known, seen.problems = seen.problems, set()

        seen.tab(report.run.run_id)
        seen.page.get_by_text("tao-tasks-look-at-me", exact=True).last.wait_for()
        # The joules stand on the tab already.
        seen.page.get_by_text(f"{energy_text(report.energy)}, estimated").last.wait_for()
        seen.page.screenshot(path=pictures / f"{ui}-artifacts-tab.png")

        seen.artifact(ours["tao-energy-look-at-me"])
        seen.page.get_by_role("heading", name="Energy of look at me").wait_for()
        assert len(report.tasks) == 6
        for row in report.tasks:
            shown = seen.page.locator("tr", has_text=row.title).inner_text().replace("\u00a0", " ")
            assert energy_text(row.energy) in shown
            assert "estimated" in shown
        for line in ("tasks", "overhead", "idle", "unattributed"):
            seen.page.locator("tr", has_text=line).first.wait_for()
        text = seen.text()  # V2 draws the page from the top: now all of it is there
        assert f"{energy_text(report.energy)}, estimated" in text
        assert format_energy(report.flow_body.energy.value_j if report.flow_body else None) in text
        charts = seen.charts(2)
        for chart in charts.all():
            chart.scroll_into_view_if_needed()
            assert chart.is_visible()
            assert chart.evaluate("image => image.complete && image.naturalWidth") > 0
        seen.page.screenshot(path=pictures / f"{ui}-artifact.png")
        wide = seen.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "nothing runs off the side of the page"

        seen.artifact(ours["tao-tasks-look-at-me"])
        seen.page.locator("td", has_text="train model 3").first.wait_for()
        assert "estimated" in seen.text()
        assert seen.problems <= known


@pytest.mark.parametrize("ui", list(ROOTS))
def test_the_page_of_a_run_that_waited_shows_when_it_ran_what_else_was_weighed_and_its_budget(
    server: str, ledger: Ledger, tmp_path: Path, ui: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings(tmp_path, "0.5 kWh").items():
        monkeypatch.setenv(name, value)
    runtime.forget()
    releasing = release_when_waiting(ledger)
    assert nightly() == 6
    releasing.join()
    ours = ids_of(only_run(ledger).run_id)
    with viewer(server, ui) as seen:
        seen.artifact(ours["tao-energy-nightly"])
        seen.page.get_by_role("heading", name="When it ran").wait_for()
        charts = seen.charts(3)  # energy, account and the time line
        for chart in charts.all():
            chart.scroll_into_view_if_needed()
            assert chart.evaluate("image => image.complete && image.naturalWidth") > 0
        seen.page.get_by_role("heading", name="What was weighed").scroll_into_view_if_needed()
        seen.page.locator("tr", has_text="chosen").wait_for()  # there is one, or it would be refused
        seen.page.locator("tr", has_text="behind").first.wait_for()
        seen.page.locator("tr", has_text="night").first.wait_for()
        wide = seen.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "nothing runs off the side of the page"
        seen.shot("decisions", tmp_path)


@pytest.mark.parametrize("ui", list(ROOTS))
def test_the_pages_of_blocks_show_their_fields_and_no_secret(server: str, tmp_path: Path, ui: str) -> None:
    secret = "tell-nobody"
    ledger = LedgerUrl(url="postgresql://tao@db.example/tao", password=secret)
    ledger.save("records", overwrite=True)
    EnergyBudget(limit="20 kWh", window="day", scope="team:search").save("search", overwrite=True)
    WorkerPoolProfile(pool_id="north", zone="DE", pue=1.2, capabilities=["gpu"]).save("north-pool", overwrite=True)
    signal = CarbonSignal(zone="DE", provider="electricitymaps", key=secret)
    signal_id = signal.save("germany", overwrite=True)
    controller = TaoController(
        mode="enforce", ledger=ledger, pools=["north-pool"], carbon=["germany"], budgets=["search"]
    )
    controller_id = controller.save("production", overwrite=True)
    with viewer(server, ui) as seen:
        seen.page.goto(f"{seen.address}{ROOTS[ui]}/blocks")
        seen.page.get_by_text("germany", exact=True).first.wait_for()
        seen.shot("blocks", tmp_path)
        for block_id, shown in ((controller_id, "north-pool"), (signal_id, "electricitymaps")):
            seen.page.goto(f"{seen.address}{ROOTS[ui]}/blocks/block/{block_id}")
            seen.page.get_by_text(shown).first.wait_for()
            assert secret not in seen.page.content()
            seen.shot(f"block-{shown}", tmp_path)
        seen.page.goto(f"{seen.address}{ROOTS[ui]}/blocks/catalog/tao-carbon-signal/create")
        seen.page.get_by_text("Provider", exact=False).first.wait_for()
        seen.shot("block-form", tmp_path)


@pytest.mark.parametrize("ui", list(ROOTS))
def test_runs_that_wait_are_deferred_in_the_list(server: str, tmp_path: Path, ui: str) -> None:
    site = Site(tmp_path, f"waiting-room-{ui}")
    try:
        deployment = site.set_up(kind="tao-process")
        worker = site.worker()
        ids = site.create(deployment, 3)
        until(lambda: all_are(ids, "Deferred"), "all wait", worker)
        with viewer(server, ui) as seen:
            seen.page.goto(f"{seen.address}{ROOTS[ui]}/runs")
            seen.page.get_by_text("Deferred", exact=True).first.wait_for()
            seen.page.get_by_text("Deferred", exact=True).nth(2).wait_for()
            seen.shot("deferred-runs", tmp_path)
            seen.page.goto(f"{seen.address}{ROOTS[ui]}/runs/flow-run/{ids[0]}")
            seen.page.get_by_text("Deferred", exact=True).first.wait_for()
            seen.shot("deferred-run", tmp_path)
    finally:
        site.close()
