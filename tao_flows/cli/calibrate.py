"""``tao-flows calibrate``: what this host draws at rest, measured and kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Final

import typer

from tao_flows.calibration import Baseline, Host, Sample, calibrate, check_writable, place_to_store, store
from tao_flows.cli._console import complain, fail, print_json, stderr, stdout
from tao_flows.clock import SystemClock
from tao_flows.config import TaoConfig, load_config
from tao_flows.errors import InputError, SourceError, TaoError
from tao_flows.figures import CpuTime, DomainEnergy
from tao_flows.gpu import GPU_NOT_HELD
from tao_flows.meter import Meter, TaskUse
from tao_flows.report.text import percent
from tao_flows.telemetry.cpuinfo import read_cpu
from tao_flows.telemetry.cputime import HostBusy
from tao_flows.telemetry.discover import Discovery, discover
from tao_flows.units import format_duration

_REFUSED: Final = 1
_DEFAULT_S: Final = 60.0
"""Long enough for the timers of a host at rest to come round, and for one burst to be a small part."""
_LEAST_S: Final = 5.0
_MOST_S: Final = 3_600.0
_INTERVAL_S: Final = 1.0
_LEAST_SAMPLES: Final = 20
_NOBODY: Final = TaskUse(CpuTime(None, "none", covers_children=False))


def calibrate_command(
    seconds: Annotated[float, typer.Option(metavar="N", help="How long to look, from 5 to 3600.")] = _DEFAULT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Measure what this host draws at rest, and keep it. Ends with 1 if it is busy or has no counter."""
    try:
        if not _LEAST_S <= seconds <= _MOST_S:
            summary = f"--seconds is {seconds:g}"
            raise InputError("BAD_SECONDS", summary, f"give a number from {_LEAST_S:g} to {_MOST_S:g}")
        config = load_config().config
        discovery = discover(
            SystemClock(), sources=config.sources, powercap_root=config.powercap_root, proc_root=config.proc_root
        )
        path = place_to_store(config.calibration, for_all=os.geteuid() == 0)
        baseline, left_out = _measure(config, discovery, path, seconds)
        store(baseline, path)
    except SourceError as error:
        complain(error)
        raise typer.Exit(_REFUSED) from None
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({**baseline.to_json(), "path": str(path), "left_out": left_out})
    else:
        _show(baseline, path, left_out)


def _measure(config: TaoConfig, discovery: Discovery, path: Path, seconds: float) -> tuple[Baseline, list[str]]:
    counted = [domain.id for source in discovery.sources for domain in source.domains if domain.counted]
    if not counted:
        raise _no_counter(discovery)
    check_writable(path)
    busy = HostBusy(config.proc_root, config.cgroup_root)
    meter = Meter(discovery.sources, None, lambda: None, lambda: None, SystemClock())
    try:
        samples = _sample(meter, counted, busy.read, seconds)
    finally:
        meter.close()
        busy.close()
    host, cpus = Host.this(config.proc_root), read_cpu(config.proc_root).vcpus
    baseline = calibrate(samples, host=host, cpus=cpus, wall_ns=SystemClock.wall_ns())
    return baseline, [name for name in counted if name not in baseline.domains]


def _no_counter(discovery: Discovery) -> SourceError:
    for diagnosis in discovery.diagnoses:
        if diagnosis.status != "ready":
            return SourceError(diagnosis.code, f"no counter to calibrate: {diagnosis.summary}", diagnosis.remedy)
    return SourceError("NO_COUNTER", "no counter is asked for", "name rapl or nvml in TAO_FLOWS_SOURCES")


def _sample(meter: Meter, counted: list[str], busy_s: Callable[[], float | None], seconds: float) -> list[Sample]:
    from rich.progress import Progress

    console = stderr()
    interval_s = min(_INTERVAL_S, seconds / _LEAST_SAMPLES)
    samples = []
    # Drawn once a sample: a bar that turns by itself is work on a host that should have none.
    bar = Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
    # Where there is nothing to draw on it is not opened: older ones of rich leave an empty line as they close.
    with bar if console.is_terminal else nullcontext():
        for _ in bar.track(range(round(seconds / interval_s)), description="measuring at rest"):
            window, before_s = meter.begin(), busy_s()
            time.sleep(interval_s)
            after_s, measured = busy_s(), meter.end(window, _NOBODY)
            used_s = None if before_s is None or after_s is None else max(0.0, after_s - before_s)
            energies_uj = {domain.domain: _at_rest_uj(domain) for domain in measured.domains}
            samples.append(Sample(measured.wall_s, used_s, {name: energies_uj[name] for name in counted}))
    return samples


def _at_rest_uj(domain: DomainEnergy) -> int | None:
    """Its microjoules; None for a GPU that a process held, or may have."""
    return domain.counter_uj if domain.kind != "gpu" or GPU_NOT_HELD in domain.events else None


def _show(baseline: Baseline, path: Path, left_out: list[str]) -> None:
    lines = [f"{name}: {domain} ({domain.samples:,} samples)" for name, domain in baseline.domains.items()]
    lines += [f"{name}: left out: not read, or held by a process, in too many samples" for name in left_out]
    lines.append(
        f"{format_duration(baseline.duration_s)}, {baseline.idle_samples:,} of {baseline.samples:,} samples idle, "
        f"{percent(baseline.busy_share)} of the CPUs' time used in them; kept in {path}"
    )
    for line in lines:
        stdout().print(line, markup=False, highlight=False, soft_wrap=True)
