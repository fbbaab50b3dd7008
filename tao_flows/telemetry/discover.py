"""Which energy sources this machine has, in the order asked for; every rejection is kept with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from tao_flows.clock import Clock
from tao_flows.errors import ConfigError, SourceError
from tao_flows.records import Diagnosis
from tao_flows.telemetry.base import EnergySource
from tao_flows.telemetry.estimate import Estimator
from tao_flows.telemetry.procfs import PROC_ROOT
from tao_flows.telemetry.rapl import DEFAULT_ROOT, RaplSource

SOURCES_VARIABLE: Final = "TAO_FLOWS_SOURCES"
_AGENT: Final = "agent"
_DEFAULT_ORDER: Final = (_AGENT, "rapl", "nvml", "estimate")
_CPU_SOURCES: Final = ("rapl", "pyrapl")
_ESTIMATE: Final = "estimate"
_STATUS_BY_CODE: Final = {
    "RAPL_PERMISSION": "denied",
    "PYRAPL_PERMISSION": "denied",
    "NVML_PERMISSION": "denied",
    "RAPL_ABSENT": "absent",
    "RAPL_NO_PACKAGE": "absent",
    "PYRAPL_ABSENT": "absent",
    "PYRAPL_EXTRA_MISSING": "absent",
    "NVML_ABSENT": "absent",
    "NVML_EXTRA_MISSING": "absent",
    "NVML_NO_GPU": "absent",
    "NVML_NO_COUNTER": "absent",
}


Counted = Literal["cpu", "gpu"]
"""What a counter may be of: processors with their memory, or GPUs."""


class _NotedSource(EnergySource, Protocol):
    notes: tuple[str, ...]
    """What of the hardware it had to leave out, and why."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """The open sources that are used, and what is said of each that was asked for.

    ``estimator`` is there only where no counter covers the CPU and the estimate was asked for.
    """

    sources: tuple[EnergySource, ...]
    estimator: Estimator | None
    diagnoses: tuple[Diagnosis, ...]
    of_agent: frozenset[Counted] = frozenset()
    """What the node agent's counters are used for."""


@dataclass(frozen=True, slots=True)
class AgentOffer:
    """What was found of a node agent, which is the source ``agent``."""

    diagnosis: Diagnosis
    counts: frozenset[Counted] = frozenset()
    """What it has counters of."""


def discover(
    clock: Clock,
    *,
    sources: Sequence[str] = (),
    powercap_root: Path = DEFAULT_ROOT,
    proc_root: Path = PROC_ROOT,
    agent: AgentOffer | None = None,
    survey: bool = True,
) -> Discovery:
    """Opens the sources that are named, in that order; with none named, every one, best first.

    One source of CPU counters is used, the first that is ready; NVML comes on top; the estimate stands in for
    the CPU where there is no counter. A source that fails in any way is a diagnosis, never an exception.

    Args:
        clock: where time comes from.
        sources: names, in order.
        powercap_root: where the kernel shows RAPL counters.
        proc_root: where the kernel shows processes.
        agent: the node agent; None where none was looked for.
        survey: False to leave alone, and unsaid, what the agent counts instead.

    Raises:
        ConfigError: BAD_SOURCES, an unknown name among them.
    """
    order = [name for name in _order(sources) if name != _AGENT or agent is not None]
    used: list[EnergySource] = []
    diagnoses: dict[str, Diagnosis] = {}
    counted_by: dict[Counted, str] = {}
    for name in order:
        if name == _AGENT and agent is not None:
            diagnoses[name] = agent.diagnosis
            counted_by = dict.fromkeys(agent.counts, _AGENT) | counted_by
            continue
        first = counted_by.get("gpu" if name == "nvml" else "cpu", "")
        if name == _ESTIMATE or (first == _AGENT and not survey):
            continue
        opened = _try_to_open(name, powercap_root, clock)
        if isinstance(opened, Diagnosis):
            diagnoses[name] = opened
        elif first:
            diagnoses[name] = _ready(opened, f"not used: {first} comes first in {SOURCES_VARIABLE}")
            opened.close()
        else:
            diagnoses[name] = _ready(opened)
            used.append(opened)
            counted_by["gpu" if name == "nvml" else "cpu"] = name
    estimator = Estimator.of_host(proc_root) if _ESTIMATE in order else None
    cpu_source = counted_by.get("cpu", "")
    if estimator is not None:
        diagnoses[_ESTIMATE] = _estimate_row(estimator, cpu_source)
    return Discovery(
        sources=tuple(used),
        estimator=None if cpu_source else estimator,
        diagnoses=tuple(diagnoses[name] for name in order if name in diagnoses),
        of_agent=frozenset(what for what, name in counted_by.items() if name == _AGENT),
    )


def _order(sources: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in sources if name.strip()))
    allowed = (_AGENT, *_CPU_SOURCES, "nvml", _ESTIMATE)
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ConfigError(
            "BAD_SOURCES",
            f"{SOURCES_VARIABLE}: {', '.join(map(repr, unknown))} is no energy source",
            f"give a comma-separated list of {', '.join(allowed)}",
        )
    return names or _DEFAULT_ORDER


def _open_rapl(powercap_root: Path, clock: Clock) -> _NotedSource:
    return RaplSource(powercap_root, clock)


def _open_pyrapl(_powercap_root: Path, clock: Clock) -> _NotedSource:
    from tao_flows.telemetry.pyrapl import PyRaplSource

    return PyRaplSource(clock)


def _open_nvml(_powercap_root: Path, clock: Clock) -> _NotedSource:
    from tao_flows.telemetry.nvml import NvmlSource

    return NvmlSource(clock)


_OPENERS: Final[dict[str, Callable[[Path, Clock], _NotedSource]]] = {
    "rapl": _open_rapl,
    "pyrapl": _open_pyrapl,
    "nvml": _open_nvml,
}


def _try_to_open(name: str, powercap_root: Path, clock: Clock) -> _NotedSource | Diagnosis:
    try:
        return _OPENERS[name](powercap_root, clock)
    except SourceError as error:
        status = _STATUS_BY_CODE.get(error.code, "broken")
        return Diagnosis(name, "energy", status, error.code, error.summary, error.remedy)
    except Exception as error:  # noqa: BLE001  whatever a driver or another's package does, the task goes on
        summary = f"{type(error).__name__}: {error}"
        remedy = f"leave {name} out of {SOURCES_VARIABLE}, and report this"
        return Diagnosis(name, "energy", "broken", f"{name.upper()}_BROKEN", summary, remedy)


def _ready(source: _NotedSource, not_used: str = "") -> Diagnosis:
    domains = tuple(domain.id for domain in source.domains)
    counted = sum(domain.counted for domain in source.domains)
    remarks = [f"{counted} of {len(domains)} domains counted", *source.notes]
    remarks += [f"{domain.id}: {event}" for domain in source.domains for event in domain.events]
    code = "NOT_CHOSEN" if not_used else "READY"
    return Diagnosis(source.id, "energy", "ready", code, "; ".join([not_used] * bool(not_used) + remarks), "", domains)


def _estimate_row(estimator: Estimator, cpu_source: str) -> Diagnosis:
    if cpu_source:
        return Diagnosis(
            _ESTIMATE, "energy", "ready", "NOT_CHOSEN", f"not used: {cpu_source} counts; {estimator.model}"
        )
    return Diagnosis(_ESTIMATE, "energy", "ready", "READY", estimator.model, "", ("cpu", "memory"))
