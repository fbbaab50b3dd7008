"""``tao-flows meter -- CMD``: what a command cost."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tao_flows import runtime
from tao_flows.attribution import part_of_host
from tao_flows.cli._console import complain, fail, stderr
from tao_flows.command import CommandResult, inherited_environment, run_command
from tao_flows.config import ConfigWatcher, env_name
from tao_flows.errors import InputError, SourceError, TaoError
from tao_flows.figures import Measurement
from tao_flows.ledger.base import RunRef
from tao_flows.measurement import unmeasured
from tao_flows.meter import TaskUse, Window
from tao_flows.parent import parent_of
from tao_flows.records import UNSEEN_RUN, Diagnosis, HostAccount, RunKey, RunRecord, TaskRecord, TaskState
from tao_flows.redact import redact_command
from tao_flows.runtime import Tao
from tao_flows.units import format_duration, format_energy_interval, format_power

SCHEMA = "tao-flows/measurement/1"
KEPT_BACK = frozenset({env_name("bundles"), env_name("signing_key")})
"""Variables that no metered command is given."""


def meter_command(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD [ARG]...", help="The command and its arguments.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help="Write the measurement there as JSON.")
    ] = None,
    label: Annotated[str, typer.Option(help="A name for the measurement; the command's by default.")] = "",
) -> None:
    """Run CMD and say what it cost. Ends with CMD's own status."""
    try:
        if not command or not command[0]:
            raise InputError("NO_COMMAND", "there is no command to run", "give it after --: tao-flows meter -- CMD")
        tao = runtime.build(ConfigWatcher(), role="tool")
        if json_path is not None:
            _check_writable(json_path)
    except TaoError as error:
        fail(error)
    redacted = redact_command(command)
    label = label or os.path.basename(redacted[0])
    run, task = _start(tao, label)
    try:
        result, measured = _run(tao, command, label)
    except OSError as error:
        fail(InputError("NO_PROCESS", f"no process can be started: {error.strerror}", "see ulimit -u and free memory"))
    _finish(tao, run, task, result, measured)
    bundle = _bundle(tao, run)
    rejected = [diagnosis for diagnosis in tao.discovery.diagnoses if diagnosis.status != "ready"]
    _say_problems(result, rejected)
    if json_path is None:
        _show(measured, result)
        if bundle is not None:
            stderr().print(f"  bundle: {bundle}", markup=False, highlight=False, soft_wrap=True)
    else:
        _write(json_path, _to_json(measured, result, redacted, rejected))
    sys.stdout.flush()
    raise typer.Exit(result.exit_code)


def _say_problems(result: CommandResult, rejected: Sequence[Diagnosis]) -> None:
    if result.problem:
        print(f"tao-flows: {result.problem}", file=sys.stderr)
    for diagnosis in rejected:
        if diagnosis.status != "absent":  # what this machine does not have is nothing to mend
            complain(SourceError(diagnosis.code, diagnosis.summary, diagnosis.remedy))


def _run(tao: Tao, command: list[str], label: str) -> tuple[CommandResult, Measurement]:
    config = tao.config
    opened: list[tuple[Window, float]] = []
    started_wall_ns = tao.clock.wall_ns()
    result = run_command(
        command,
        env=_environment(config.proc_root),
        proc_root=config.proc_root,
        cgroup_root=config.cgroup_root,
        on_start=lambda pid: opened.append((tao.meter.begin(label, party="command", pid=pid), time.process_time())),
        on_sample=lambda _pids: tao.meter.sample(),
    )
    if not opened:
        return result, unmeasured(label, started_wall_ns, result.wall_s, "ON_START_FAILED")
    window, own_before_s = opened[0]
    use = TaskUse(
        result.cpu,
        overhead_cpu_s=time.process_time() - own_before_s,
        resident_bytes=result.resident_mean_bytes,
        pids=result.pids,
    )
    return result, tao.meter.end(window, use)


def _start(tao: Tao, label: str) -> tuple[RunRecord, TaskRecord]:
    config, now_ns = tao.config, tao.clock.wall_ns()
    key, state = RunKey("meter", config.namespace, label, str(uuid.uuid4()), label, "0", 1), str(TaskState.RUNNING)
    parent = parent_of(tao.segment, config.proc_root)
    if parent is not None:
        # A task of its own in the run that started us; of the run itself nothing is known here.
        key, state = replace(parent, task=f"{parent.task}/{label}"), UNSEEN_RUN
    run = RunRecord(key.engine, key.namespace, key.flow, key.run_id, state, now_ns, tao.segment, who=config.who)
    task = TaskRecord(key, tao.segment, TaskState.RUNNING, now_ns, who=config.who, pool="local")
    tao.ledger.put_run(run)
    tao.ledger.put_task(task)
    return run, task


def _finish(tao: Tao, run: RunRecord, task: TaskRecord, result: CommandResult, measured: Measurement) -> None:
    state = TaskState.COMPLETED if result.exit_code == 0 else TaskState.FAILED
    ended_ns = tao.clock.wall_ns()
    account, window, joined = measured.account, "command", run.state == UNSEEN_RUN
    if joined:  # others of this run can be at work on this host: only what is this command's is written
        account = part_of_host(account, tasks_uj=account.tasks_uj, overhead_uj=account.overhead_uj)
        window = tao.segment.id
    host = HostAccount(run.segment.host, account, measured.wall_s, window, measured.events)
    tao.ledger.put_task(replace(task, state=state, ended_wall_ns=ended_ns, measurement=measured))
    tao.ledger.put_account(RunRef(run.engine, run.namespace, run.run_id, run.flow), host)
    if not joined:
        tao.ledger.put_run(replace(run, state=str(state), ended_wall_ns=ended_ns))


def _environment(proc_root: Path) -> dict[str, str]:
    """What CMD gets of our environment: not where bundles are signed, and with what."""
    return {name: value for name, value in inherited_environment(proc_root).items() if name not in KEPT_BACK}


def _bundle(tao: Tao, run: RunRecord) -> Path | None:
    """Seals what was metered, where settings ask for it. A command inside another's run is that run's to seal."""
    if run.state == UNSEEN_RUN or tao.config.bundles is None:
        return None
    from tao_flows.governance.sealing import seal_run

    sealed = seal_run(tao, RunRef(run.engine, run.namespace, run.run_id, run.flow), signer="meter")
    return None if sealed is None else sealed.path


def _to_json(
    measured: Measurement, result: CommandResult, command: list[str], rejected: Sequence[Diagnosis]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "label": measured.label,
        "command": command,
        "exit_code": result.exit_code,
        "wall_s": result.wall_s,
        "cpu_s": measured.cpu_s,
        "cpu_source": measured.cpu.source,
        "cpu_lower_bound": measured.cpu.lower_bound,
        "energy": measured.energy.to_json(),
        "power_w": measured.power_w,
        "memory_peak_bytes": result.resident_peak_bytes,
        "domains": [domain.to_json() for domain in measured.domains],
        "account": measured.account.to_json(),
        "method": measured.method,
        "model": measured.model,
        "baseline": measured.baseline,
        "events": [*measured.events, *result.events],
        "rejected": [diagnosis.to_json() for diagnosis in rejected],
    }


def _check_writable(path: Path) -> None:
    """Opens the file before anything runs, so that a mistyped path costs nothing.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        remedy = "give a path in a directory that exists and can be written"
        raise InputError("UNWRITABLE", f"{path}: {error.strerror}", remedy) from None


def _write(path: Path, document: dict[str, Any]) -> None:
    import json

    try:
        path.write_text(json.dumps(document, allow_nan=False, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"tao-flows: the measurement could not be written: {path}: {error.strerror}", file=sys.stderr)


def _show(measured: Measurement, result: CommandResult) -> None:
    energy, console = measured.energy, stderr()
    figure = format_energy_interval(energy.value_j, energy.low_j, energy.high_j)
    quality = "" if energy.value_j is None else f" {energy.quality}"
    line = (
        f"{measured.label}: {figure}{quality}, {format_power(measured.power_w)}, {format_duration(result.wall_s)}, "
        f"CPU {format_duration(measured.cpu_s)} ({measured.cpu.source})"
    )
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if energy.unknown_parts:
        parts = ", ".join(energy.unknown_parts)
        # Of the estimate only memory is ever missing: a command of milliseconds is over before it is looked at.
        estimated = all(part.endswith("(estimate)") for part in energy.unknown_parts)
        why = "the command was too short to look at" if estimated else "tao-flows doctor says why"
        console.print(f"  unknown: {parts}; {why}", markup=False, highlight=False, soft_wrap=True)
    if measured.baseline:
        console.print(f"  idle: {measured.baseline}", markup=False, highlight=False, soft_wrap=True)
    if measured.model:
        console.print(f"  model: {measured.model}", markup=False, highlight=False, soft_wrap=True)
