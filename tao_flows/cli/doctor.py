"""``tao-flows doctor``: what can be measured here, what cannot, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from tao_flows.agent.client import Search, find_agent
from tao_flows.calibration import HOW
from tao_flows.cli._console import fail, print_json, stdout
from tao_flows.cli.config import Engine, resolve
from tao_flows.clock import SystemClock
from tao_flows.config import TaoConfig
from tao_flows.errors import SourceError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.diagnose import ledger_diagnosis, spool_diagnosis
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.pools import load_pools
from tao_flows.report.text import percent
from tao_flows.runtime import calibration_of
from tao_flows.telemetry import ebpf
from tao_flows.telemetry.cputime import FOR_COMMANDS, FOR_THREADS, chosen, cpu_diagnoses
from tao_flows.telemetry.discover import Discovery, discover

_ENGINES = {"prefect": "prefect", "airflow": "apache-airflow"}
_KINDS = {"energy": "energy", "cpu_time": "CPU time", "pressure": "pressure"}
_NOT_CALIBRATED = "not calibrated: tasks carry a part of what the host draws at rest"
_COLOURS = {"ready": "green", "denied": "yellow", "absent": "dim", "broken": "red"}


def doctor_command(
    engine: Annotated[Engine, typer.Option("--engine", help="Look at this engine's deployment, too.")] = Engine.NONE,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Say what can be measured here, what cannot, why, and what to do about it."""
    try:
        # Airflow logs to standard output, which is for what was asked.
        with redirect_stdout(sys.stderr):
            resolved = resolve(engine)
            found = _examine_airflow(resolved.config) if engine is Engine.AIRFLOW else examine(resolved.config)
    except TaoError as error:
        fail(error)
    found["remarks"] = list(resolved.remarks)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _examine_airflow(config: TaoConfig) -> dict[str, Any]:
    from airflow_plugin import doctor
    from airflow_plugin.settings import open_named

    found = examine(config, open_named)
    return {**found, "deployment": doctor.examine(config, found["ledger"])}


def examine(config: TaoConfig, open_it: Callable[[str], RelationalLedger] = open_ledger) -> dict[str, Any]:
    """What ``doctor --json`` says.

    Args:
        config: the settings.
        open_it: opens the ledger that the settings name.

    Raises:
        ConfigError: a setting is wrong.
    """
    agent = find_agent(config.agent, "tool")
    discovery = discover(
        SystemClock(),
        sources=config.sources,
        powercap_root=config.powercap_root,
        proc_root=config.proc_root,
        agent=agent.offer,
    )
    for source in discovery.sources:
        source.close()
    # Last: it is for the node agent alone.
    cpu = (*cpu_diagnoses(config.proc_root, config.cgroup_root), ebpf.diagnose())
    agents = _agent(agent)
    used = ["agent"] if discovery.of_agent else []
    used += [source.id for source in discovery.sources] + (["estimate"] if discovery.estimator else [])
    return {
        "sources": [diagnosis.to_json() for diagnosis in (*discovery.diagnoses, *cpu)],
        "chosen": {
            "energy": used,
            "cpu_time": _cpu_of(agent) or chosen(cpu, FOR_COMMANDS),
            "cpu_time_threads": _cpu_of(agent) or chosen(cpu, FOR_THREADS),
        },
        "calibration": _calibration(config, discovery, agents["says"] or {}),
        "agent": agents,
        "ledger": ledger_diagnosis(config, open_it=open_it),
        "spool": spool_diagnosis(config.ledger),
        "pools": _pools(config),
        "engines": {name: _engine(name, package) for name, package in _ENGINES.items()},
    }


def _cpu_of(agent: Search) -> str:
    """The agent's source of CPU time, where that is used: one that can miss some gives way to others."""
    about = None if agent.client is None else agent.client.about
    return "" if about is None or about.cpu_lower_bound else f"agent:{about.cpu_source}"


def _agent(agent: Search) -> dict[str, Any]:
    said = agent.diagnosis
    row: dict[str, Any] = {"path": None if agent.path is None else str(agent.path), "status": said.status}
    row |= {"code": said.code, "summary": said.summary, "remedy": said.remedy, "says": None}
    if agent.client is not None:
        try:
            row["says"] = agent.client.status()
        except SourceError as error:
            row |= {"status": "broken", "code": error.code, "summary": error.summary, "remedy": error.remedy}
        agent.client.close()
    return row


def _calibration(config: TaoConfig, discovery: Discovery, agent_says: Mapping[str, Any]) -> dict[str, Any]:
    row = {"path": None, "status": "absent", "code": "", "summary": "no counter here to calibrate", "remedy": ""}
    if "cpu" in discovery.of_agent:
        if agent_says.get("calibrated"):
            return row | {"status": "ready", "summary": "calibrated: the agent has the baseline"}
        return row | {"summary": _NOT_CALIBRATED, "remedy": HOW}
    counted = [domain.id for source in discovery.sources for domain in source.domains if domain.counted]
    if not counted:
        return row
    found = calibration_of(config, discovery)
    said = [problem.summary for problem in found.problems]
    if found.baseline is None:
        row |= {"summary": _NOT_CALIBRATED, "remedy": HOW}
        if found.problems:
            row |= {"status": "broken", "code": found.problems[0].code, "summary": "; ".join(said)}
        return row
    baseline = found.baseline
    powers = ", ".join(f"{name} {baseline.domains[name]}" for name in counted if name in baseline.domains)
    whole = f"calibrated on {baseline.date}, {percent(baseline.busy_share)} busy: {powers}; {found.path}"
    missing = [f"no baseline of {name}" for name in counted if name not in baseline.domains]
    return {**row, "path": str(found.path), "status": "ready", "summary": "; ".join([whole, *missing, *said])}


def _pools(config: TaoConfig) -> dict[str, Any]:
    row = {"path": None, "status": "absent", "code": "", "summary": "none described", "remedy": ""}
    if config.pools is None:
        return row
    row |= {"path": str(config.pools), "status": "ready"}
    try:
        described = load_pools(config.pools)
    except TaoError as error:
        return {**row, "status": "broken", "code": error.code, "summary": error.summary, "remedy": error.remedy}
    return {**row, "summary": f"{', '.join(pool.pool_id for pool in described)} in {config.pools}"}


def _engine(name: str, package: str) -> dict[str, Any]:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        remedy = f"pip install 'tao-flows[{name}]' in the environment of your {name} workers"
        return {"status": "absent", "version": None, "summary": f"{package} is not installed here", "remedy": remedy}
    row = {"status": "ready", "version": version, "summary": f"{package} {version}", "remedy": ""}
    if name == "airflow" and (shadow := _shadowing_plugin()):
        row |= {
            "status": "broken",
            "summary": f"{shadow} hides tao-flows' own airflow_plugin package from Airflow",
            "remedy": "rename or remove that file",
        }
    return row


def _shadowing_plugin() -> str:
    """A user's plugin file of our package's name: Airflow puts its plugins folder on the path."""
    folder = os.path.join(os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow")), "plugins")
    for name in ("airflow_plugin.py", "airflow_plugin"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    return ""


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    console = stdout()
    sources = Table(title="What can be measured here", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("source", "for", "status", "what"):
        sources.add_column(column, overflow="fold")
    for source in found["sources"]:
        if source["id"] == "agent":
            continue  # it has a line of its own
        colour = _COLOURS[source["status"]]
        sources.add_row(source["id"], _KINDS[source["kind"]], f"[{colour}]{source['status']}[/]", _what(source))
    rest = Table.grid(padding=(0, 2, 0, 0))
    rest.add_column()
    rest.add_column(overflow="fold")
    picked, ledger = found["chosen"], found["ledger"]
    rest.add_row("energy from", " + ".join(picked["energy"]) or "nothing: every figure will be unknown")
    rest.add_row("CPU time of", f"commands: {picked['cpu_time']}; tasks: {picked['cpu_time_threads']}")
    rest.add_row("agent", _what(_with_path(found["agent"])))
    rest.add_row("idle", _what(found["calibration"]))
    rest.add_row("ledger", _what({**ledger, "summary": f"{ledger['url']}: {ledger['summary']}"}))
    rest.add_row("spool", _what(found["spool"]))
    rest.add_row("pools", _what(found["pools"]))
    for name, engine in found["engines"].items():
        rest.add_row(name, _what(engine))
    for check in found.get("deployment", ()):
        rest.add_row(check["id"], _what(check))
    for remark in found["remarks"]:
        rest.add_row("note", _what({"summary": remark}))
    console.print(sources)
    console.print()
    console.print(rest)


def _with_path(agent: dict[str, Any]) -> dict[str, Any]:
    says = agent["says"] or {}
    rejected = [f"{each['code']}: {each['summary']}" for each in says.get("rejected", ())]
    path = [f"at {agent['path']}"] if says else []
    return {**agent, "summary": "; ".join((agent["summary"], *path, *rejected))}


def _what(row: dict[str, Any]) -> Any:
    """A summary with its code, and the remedy on a line below. Text, not markup: there are paths and names in it."""
    from rich.text import Text

    code, remedy = row.get("code", ""), row.get("remedy", "")
    text = row["summary"] + (f" [{code}]" if code not in {"", "READY"} else "")
    return Text(text + (f"\n-> {remedy}" if remedy else ""))
