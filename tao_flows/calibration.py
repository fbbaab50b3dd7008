"""The idle baseline: what this host draws at rest, by domain, and how it is told from samples and kept.

Statistics and a file; the sampling is the command's (``tao-flows calibrate``). The rule (``METHOD``): samples in which
the host was busy are left out; a domain's baseline is the median power of the rest, and its spread is two robust
standard deviations (2 * 1.4826 * the median absolute deviation), within which nineteen of twenty samples of normal
noise lie. Both stand firm while fewer than half of the samples are off, as a short burst of work makes them; a mean
would follow the burst, and a low quantile would follow the noise and come out too low.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tao_flows.clock import iso_from_ns
from tao_flows.config import state_directory
from tao_flows.errors import InputError, SourceError, TaoError
from tao_flows.telemetry.cpuinfo import read_cpu
from tao_flows.telemetry.procfs import PROC_ROOT
from tao_flows.units import format_power, j_from_uj, s_from_ns, uj_from_j

METHOD: Final = "tao-flows/idle/1"
"""Version of the rule, and of the file's form."""
BUSY_SHARE: Final = 0.05
"""A sample in which more of the CPUs' time than this was used is not idle: a host's own services stay below it."""
BUSY_CPUS: Final = 0.5
"""Nor is one in which more CPUs than this worked: on a large host one busy core is a small share, and keeps the
whole package awake."""
IDLE_PART: Final = 0.5
"""The least part of the samples that must be idle: with fewer, nobody knows which half was at rest."""
SYSTEM_FILE: Final = Path("/var/lib/tao-flows/idle.json")
"""Where root keeps it, for every user of the host."""
MACHINE_ID: Final = Path("/etc/machine-id")
_SPREAD_PER_MAD: Final = 2 * 1.4826
_MOST_W: Final = 1e6
_MOST_BYTES: Final = 1 << 20
HOW: Final = "on this host at rest, run: tao-flows calibrate"
"""What to do where there is no baseline."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A second or so of a host that should be idle."""

    wall_s: float
    busy_s: float | None
    """CPU seconds that the host worked; None when they were not read."""
    energy_uj: Mapping[str, int | None]
    """By domain; None where the counter was not read, or the domain (a GPU) was not at rest."""


@dataclass(frozen=True, slots=True)
class Host:
    """Which machine this is, the same after every boot."""

    machine: str
    """A hash of its machine-id, or its name where it has none."""
    cpu: str
    """Brand and number of CPUs: the same disk in another machine, or a resized virtual one, is another host."""

    @classmethod
    def this(cls, proc_root: Path = PROC_ROOT, machine_id: Path = MACHINE_ID) -> Host:
        """This machine. Never raises."""
        import hashlib  # costs milliseconds, and is needed only where there is a file

        try:
            secret = machine_id.read_bytes().strip()
        except OSError:
            secret = b""
        # machine-id(5): not to be shown as it is, only hashed with something of the application's own.
        name = hashlib.sha256(b"tao-flows/idle " + secret).hexdigest()[:32] if secret else os.uname().nodename
        cpu = read_cpu(proc_root)
        return cls(name, f"{cpu.brand or cpu.microarchitecture or 'unknown CPU'}, {cpu.vcpus} CPUs")


@dataclass(frozen=True, slots=True)
class DomainBaseline:
    """One domain at rest."""

    power_w: float
    spread_w: float
    """The power lay within this of ``power_w``."""
    samples: int
    """How many samples that is from."""

    def __str__(self) -> str:
        return f"{format_power(self.power_w)} ± {format_power(self.spread_w)}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a host draws at rest."""

    host: Host
    calibrated_wall_ns: int
    duration_s: float
    busy_share: float
    """Median share of the CPUs' time that was used in the idle samples."""
    samples: int
    idle_samples: int
    domains: Mapping[str, DomainBaseline]
    method: str = METHOD

    def idle_uj(self, domain: str, wall_ns: int) -> int | None:
        """Microjoules that the domain draws at rest in ``wall_ns``; None where it was not calibrated."""
        known = self.domains.get(domain)
        return None if known is None else uj_from_j(known.power_w * s_from_ns(wall_ns))

    def spread_uj(self, domain: str, wall_ns: int) -> int:
        """How far ``idle_uj`` may be off either way; 0 where there is none."""
        known = self.domains.get(domain)
        return 0 if known is None else uj_from_j(known.spread_w * s_from_ns(wall_ns))

    @property
    def date(self) -> str:
        """The day of the calibration, UTC."""
        return (iso_from_ns(self.calibrated_wall_ns) or "")[:10]

    def origin(self, domains: Iterable[str]) -> str | None:
        """Date, and power and spread of these domains together, in words; None where none of them is calibrated."""
        known = [self.domains[domain] for domain in domains if domain in self.domains]
        if not known:
            return None
        # What shifts one domain's power at rest (temperature, firmware) shifts the others': spreads add up.
        whole = DomainBaseline(sum(d.power_w for d in known), sum(d.spread_w for d in known), 0)
        return f"calibrated on {self.date}, {whole}"

    def to_json(self) -> dict[str, Any]:
        """The form of the file and of the CLI contract."""
        document = asdict(self)
        return {"schema": document.pop("method"), "calibrated": iso_from_ns(self.calibrated_wall_ns), **document}

    @classmethod
    def parse(cls, document: Any) -> Baseline:
        """The baseline of a document that ``to_json`` made.

        Raises:
            InputError: CALIBRATION_BAD, it is none.
        """
        try:
            return cls(
                method=_method(document["schema"]),
                host=Host(str(document["host"]["machine"]), str(document["host"]["cpu"])),
                calibrated_wall_ns=_count(document["calibrated_wall_ns"]),
                duration_s=_number(document["duration_s"]),
                busy_share=_number(document["busy_share"]),
                samples=_count(document["samples"]),
                idle_samples=_count(document["idle_samples"]),
                domains={
                    str(name): DomainBaseline(
                        _number(entry["power_w"]), _number(entry["spread_w"]), _count(entry["samples"])
                    )
                    for name, entry in document["domains"].items()
                },
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"no {error} in it" if isinstance(error, KeyError) else str(error)
            raise InputError("CALIBRATION_BAD", f"no idle baseline: {what}", HOW) from None


def _method(value: object) -> str:
    if value != METHOD:
        raise ValueError(f"its schema is {value!r}, not {METHOD!r}")
    return METHOD


def _number(value: object) -> float:
    # Bounds keep a file that was tampered with from making an energy that no integer can hold.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST_W:
        raise ValueError(f"{value!r} is no number from 0 to {_MOST_W:g}")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no count")
    return value


def calibrate(
    samples: Sequence[Sample],
    *,
    host: Host,
    cpus: int,
    wall_ns: int,
    busy_share: float = BUSY_SHARE,
    busy_cpus: float = BUSY_CPUS,
    idle_part: float = IDLE_PART,
) -> Baseline:
    """The baseline that samples of a host at rest tell. A domain with too few idle samples is left out.

    Args:
        samples: of equal length, one after another.
        host: where they were taken.
        cpus: how many CPUs it has.
        wall_ns: when they were taken.
        busy_share: more of the CPUs' time than this is busy.
        busy_cpus: more CPUs at work than this are busy.
        idle_part: the least part of the samples that must be idle.

    Raises:
        SourceError: CALIBRATION_BUSY, too few samples are idle; CALIBRATION_CPU_UNKNOWN, it was not read whether
            they are; CALIBRATION_NO_READING, no domain has enough readings.
    """
    from statistics import median  # costs milliseconds, which every start of a task would pay

    shares = [sample.busy_s / (sample.wall_s * cpus) for sample in samples if sample.busy_s is not None]
    if not shares:
        remedy = "see that /proc/stat can be read, or set TAO_FLOWS_PROC_ROOT"
        raise SourceError("CALIBRATION_CPU_UNKNOWN", "the host's busy CPU time cannot be read", remedy)
    limit = min(busy_share, busy_cpus / cpus)
    idle = [s for s in samples if s.busy_s is not None and s.busy_s <= limit * s.wall_s * cpus]
    enough = max(1, math.ceil(idle_part * len(samples)))
    if len(idle) < enough:
        raise SourceError(
            "CALIBRATION_BUSY",
            f"the host was busy: {len(idle)} of {len(samples)} samples are idle (at most {limit:.2%} of the CPUs' "
            f"time used; the median was {median(shares):.1%}), and {enough} are needed",
            "stop what runs on it (top shows what) and calibrate again; nothing was stored",
        )
    domains = {}
    for name in dict.fromkeys(name for sample in idle for name in sample.energy_uj):
        read = [(s.energy_uj.get(name), s.wall_s) for s in idle]
        powers_w = [j_from_uj(energy_uj) / wall_s for energy_uj, wall_s in read if energy_uj is not None]
        if len(powers_w) >= enough:
            power_w = median(powers_w)
            spread_w = _SPREAD_PER_MAD * median(abs(each - power_w) for each in powers_w)
            domains[name] = DomainBaseline(power_w, spread_w, len(powers_w))
    if not domains:
        remedy = "tao-flows doctor says what ails the counters; a GPU must be held by nobody"
        raise SourceError("CALIBRATION_NO_READING", f"no domain has {enough} readings at rest", remedy)
    return Baseline(
        host=host,
        calibrated_wall_ns=wall_ns,
        duration_s=sum(sample.wall_s for sample in samples),
        busy_share=median(s.busy_s / (s.wall_s * cpus) for s in idle if s.busy_s is not None),
        samples=len(samples),
        idle_samples=len(idle),
        domains=domains,
    )


def places(named: Path | None, env: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where a baseline is looked for, in order: the file that is named, or the user's and then the system's."""
    if named is not None:
        return (named,)
    state = state_directory(env)
    return (SYSTEM_FILE,) if state is None else (state / SYSTEM_FILE.name, SYSTEM_FILE)


def place_to_store(named: Path | None, env: Mapping[str, str] = os.environ, *, for_all: bool) -> Path:
    """Where a new baseline goes: the file that is named, else the system's (``for_all``) or the user's.

    Raises:
        InputError: NO_HOME, the user has no state directory.
    """
    if named is not None or for_all:
        return named or SYSTEM_FILE
    user, *system = places(None, env)
    if not system:
        raise InputError("NO_HOME", "there is no home directory to keep it in", "name a file in TAO_FLOWS_CALIBRATION")
    return user


@dataclass(frozen=True, slots=True)
class Found:
    """What there is in the way of a baseline."""

    baseline: Baseline | None = None
    path: Path | None = None
    problems: tuple[TaoError, ...] = ()
    """Why files that are there were passed over."""


def find_baseline(files: Iterable[Path], domains: Iterable[str], host: Callable[[], Host] = Host.this) -> Found:
    """The first of these files that holds a baseline of this host and of some of these domains. Never raises.

    Args:
        files: see ``places``; one that is not there is passed over.
        domains: ids of those that are counted here.
        host: this machine, looked at only where there is a file.
    """
    domains, problems = frozenset(domains), []
    for path in files:
        try:
            baseline = _load(path)
            if baseline is None:
                continue
            _check(baseline, host(), domains)
        except InputError as error:
            problems.append(InputError(error.code, f"{path} is not used: {error.summary}", error.remedy))
            continue
        return Found(baseline, path, tuple(problems))
    return Found(problems=tuple(problems))


def _load(path: Path) -> Baseline | None:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("CALIBRATION_UNREADABLE", reason, "let this user read it, or calibrate again") from None
    except (ValueError, RecursionError) as error:
        raise InputError("CALIBRATION_BAD", f"not JSON: {error}", HOW) from None
    return Baseline.parse(document)


def _check(baseline: Baseline, host: Host, domains: frozenset[str]) -> None:
    if baseline.host.machine != host.machine:
        raise InputError("CALIBRATION_OTHER_HOST", "it is another host's", HOW)
    if baseline.host.cpu != host.cpu:
        summary = f"it is of another CPU ({baseline.host.cpu}; this is {host.cpu})"
        raise InputError("CALIBRATION_OTHER_CPU", summary, HOW)
    if not domains & baseline.domains.keys():
        summary = f"it is of {', '.join(baseline.domains) or 'no domain'}, and here is {', '.join(sorted(domains))}"
        raise InputError("CALIBRATION_OTHER_DOMAINS", summary, HOW)


def check_writable(path: Path) -> None:
    """Makes the directory, and a file in it and away again, so that nobody waits for what cannot be kept.

    Raises:
        InputError: UNWRITABLE.
    """
    from tempfile import NamedTemporaryFile  # costs milliseconds, and no task writes

    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            if path == SYSTEM_FILE:
                path.parent.chmod(0o755)  # whatever root's umask is, every user looks here
        with NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def store(baseline: Baseline, path: Path) -> None:
    """Writes the file whole or not at all: an earlier one stays until the new one is on the disk.

    Raises:
        InputError: UNWRITABLE.
    """
    from tempfile import NamedTemporaryFile

    try:
        with NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
            try:
                json.dump(baseline.to_json(), file, allow_nan=False, indent=2)
                file.write("\n")
                file.flush()
                os.fchmod(file.fileno(), 0o644)  # every user's tasks read what root has calibrated
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unwritable(path: Path, error: OSError) -> InputError:
    remedy = "name a file that can be written in TAO_FLOWS_CALIBRATION, or run it as root"
    return InputError("UNWRITABLE", f"{path}: {error.strerror or error}", remedy)
