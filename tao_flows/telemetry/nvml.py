"""NVIDIA GPUs through NVML: the energy counter where there is one, integrated power elsewhere."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from tao_flows.clock import Clock
from tao_flows.errors import SourceError
from tao_flows.telemetry import procfs
from tao_flows.telemetry.base import UNSEEN_PROCESS, DeviceUse, Domain, Reading
from tao_flows.units import NS_PER_S, NS_PER_US, UJ_PER_J, UJ_PER_MJ

_COUNTER_INTERVAL_S: Final = 1.0
"""A counter could wait far longer; who holds a GPU, and how much it is used, is seen about as often as NVML says it."""
_POWER_INTERVAL_S: Final = 0.1
_LONGEST_STEP_NS: Final = NS_PER_S
"""Ten missed samples. Over more than this, what lies between two powers is not known."""
_BREAK_UJ: Final = 10**9 * UJ_PER_J
"""More than a GPU draws in a process's life: every break in the integral steps the count down by this."""
_HOLDER_FUNCTIONS: Final = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
"""Newest first. The name without a version is pynvml's v3 again, with an error outside NVMLError's tree."""
_SAMPLED_NS: Final = 2 * NS_PER_S
"""NVML's sampling periods last up to a second: one lies wholly within any two, and has an end that was seen."""
_LAG_NS: Final = NS_PER_S
"""A period's samples may come as much after its end."""
_DRIVER_REMEDY: Final = "see that nvidia-smi works: load the driver, or reboot after a driver update"

_Read = Callable[[int], int]
"""From the monotonic time of the reading to microjoules; raises NVMLError."""


class NvmlSource:
    """Every GPU that NVML can meter, as an EnergySource, with the processes that hold and use each (DeviceUsers).

    Domains are ``gpu-0``, ``gpu-1``, ... in NVML's order; ``uuids`` names the boards. A GPU with neither an
    energy counter nor a power is left out, with its reason in ``notes``. With MIG on, there is no power by
    instance: the whole board is one domain, marked MIG_SHARED, and its processes are shown on it.

    Raises:
        SourceError: NVML_EXTRA_MISSING, NVML_ABSENT, NVML_DRIVER, NVML_PERMISSION, NVML_NO_GPU,
            NVML_NO_COUNTER or NVML_FAILED.
    """

    id = "nvml"

    def __init__(self, clock: Clock) -> None:
        self._nvml: Any = _import_nvml()
        self._now = clock.monotonic_ns
        self._wall_ns = clock.wall_ns
        self._handles: dict[str, Any] = {}
        self._sliced: set[str] = set()
        self._used_until_ns: dict[str, int] = {}
        self._reads: list[_Read] = []
        self.uuids: dict[str, str] = {}
        self._is_open = False
        try:
            self._nvml.nvmlInit()
            self._is_open = True
            self.domains, self.notes = self._open_gpus(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            self.close()
            raise _source_error(error) from error
        except SourceError:
            self.close()
            raise
        is_integrated = any("INTEGRATED_POWER" in d.events for d in self.domains)
        self.max_interval_s = _POWER_INTERVAL_S if is_integrated else _COUNTER_INTERVAL_S

    def read(self) -> tuple[Reading, ...]:
        """One reading a GPU, in the order of ``domains``. Never raises."""
        return tuple([self._reading(read) for read in self._reads])

    def use(self, domain: str) -> DeviceUse:
        """Who computes on a GPU now, and how much each process used it since the last call for it. Never raises.

        NVML keeps a sample for each process that used the GPU: when it last did, and the mean share of time in which
        its kernels ran (``smUtil``) since a time stamp that the caller gives. This source keeps one stamp a GPU, so
        that successive calls share out all of the time and none of it twice: it serves one caller, who calls about
        every second. Samples come every 1/6 s to 1 s, and up to a second late:

        * the first call says nothing, and begins;
        * a call that finds new samples says what was used up to the newest of them, in seconds of full use;
        * one that finds none says that nobody used the GPU once two seconds are without, and else not yet (None
          without a code): the next call covers that time, too.

        A process that ran only copies or video engines has one percent: what used the GPU is never nothing.

        Codes: GPU_PID_NAMESPACE, NVML numbers processes as the host does, and this process is in another PID
        namespace; GPU_UTILISATION_NOT_SUPPORTED by this GPU, its driver, or with MIG; GPU_UTILISATION_FAILED:name of
        NVML's error. With MIG, processes of other slices may not be shown: UNSEEN_PROCESS stands for them.
        """
        if not procfs.in_hosts_pid_namespace():
            return DeviceUse(None, None, "GPU_PID_NAMESPACE")
        holders = self._holders_of(self._handles[domain])
        if domain in self._sliced:
            seen = holders | {UNSEEN_PROCESS} if holders else holders
            return DeviceUse(seen, None, "GPU_UTILISATION_NOT_SUPPORTED")
        try:
            return DeviceUse(holders, self._used(domain))
        except self._nvml.NVMLError_InsufficientSize:
            return DeviceUse(holders, None)  # one more process than a moment before: the next call tells
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return DeviceUse(holders, None, "GPU_UTILISATION_NOT_SUPPORTED")
        except self._nvml.NVMLError as error:
            return DeviceUse(holders, None, f"GPU_UTILISATION_FAILED:{_error_name(error)}")

    def close(self) -> None:
        """Gives NVML back. May be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            pass  # Nothing is held if the library is already down.

    def _reading(self, read: _Read) -> Reading:
        at_ns = self._now()
        try:
            return Reading(at_ns, read(at_ns))
        except self._nvml.NVMLError as error:
            return Reading(at_ns, None, _read_code(error))

    def _open_gpus(self, count: int) -> tuple[tuple[Domain, ...], tuple[str, ...]]:
        if count == 0:
            raise SourceError(
                "NVML_NO_GPU", "NVML is there and lists no GPU", "pass a GPU to this machine or container"
            )
        domains: list[Domain] = []
        notes: list[str] = []
        for index in range(count):
            domain_id = f"gpu-{index}"
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                read, events = self._best_read(handle)
            except self._nvml.NVMLError as error:
                notes.append(f"{domain_id} left out: {_error_name(error)}")
                continue
            self._handles[domain_id] = handle
            self._reads.append(read)
            self.uuids[domain_id] = self._uuid(handle)
            if self._has_mig(handle):
                events = (*events, "MIG_SHARED")
                self._sliced.add(domain_id)
            domains.append(Domain(id=domain_id, kind="gpu", source=self.id, events=events))
        if not domains:
            raise SourceError(
                "NVML_NO_COUNTER", "; ".join(notes), "no GPU gives an energy or a power: see nvidia-smi -q"
            )
        return tuple(domains), tuple(notes)

    def _best_read(self, handle: Any) -> tuple[_Read, tuple[str, ...]]:
        nvml = self._nvml

        def read_counter(_at_ns: int) -> int:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * UJ_PER_MJ

        try:
            read_counter(0)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
            nvml.nvmlDeviceGetPowerUsage(handle)
            integral = PowerIntegral(lambda: int(nvml.nvmlDeviceGetPowerUsage(handle)))
            return integral.energy_uj, ("INTEGRATED_POWER",)
        return read_counter, ()

    def _uuid(self, handle: Any) -> str:
        try:
            return str(self._nvml.nvmlDeviceGetUUID(handle))
        except self._nvml.NVMLError:
            return ""

    def _has_mig(self, handle: Any) -> bool:
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(handle)[0])
        except self._nvml.NVMLError:
            return False

    def _used(self, domain: str) -> Mapping[int, float] | None:
        now_ns = self._wall_ns()
        since_ns = self._used_until_ns.setdefault(domain, now_ns)
        if now_ns <= since_ns:  # the first call, or the wall clock, which NVML's stamps are of, was set back
            self._used_until_ns[domain] = now_ns
            return None
        samples = self._samples(self._handles[domain], since_ns // NS_PER_US)
        if samples:
            newest_ns = max(sample.timeStamp for sample in samples) * NS_PER_US
            self._used_until_ns[domain] = newest_ns
            used: dict[int, float] = {}
            for sample in samples:
                percent = sample.smUtil or int(any((sample.memUtil, sample.encUtil, sample.decUtil)))
                used[sample.pid] = used.get(sample.pid, 0.0) + percent / 100 * (newest_ns - since_ns) / NS_PER_S
            return used
        if now_ns - since_ns < _SAMPLED_NS:
            return None
        self._used_until_ns[domain] = now_ns - _LAG_NS
        return {}

    def _samples(self, handle: Any, since_us: int) -> list[Any]:
        nvml = self._nvml
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
        except nvml.NVMLError_NotFound:
            return []
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_SUCCESS:  # pynvml raises this for success without a sample
                return []
            raise
        # Drivers have been seen to give older samples too, empty ones, and percents of many thousands.
        return [s for s in samples if s.pid and s.timeStamp > since_us and s.smUtil <= 100]

    def _holders_of(self, handle: Any) -> frozenset[int] | None:
        for name in _HOLDER_FUNCTIONS:
            function = getattr(self._nvml, name, None)
            if function is None:
                continue
            try:
                return frozenset(int(process.pid) for process in function(handle))
            except self._nvml.NVMLError_FunctionNotFound:
                continue
            except self._nvml.NVMLError:
                return None
        return None


class PowerIntegral:
    """A count of microjoules from powers in milliwatts, by the trapezoid rule over successive reads.

    Where a power could not be read, or more than a second passed since the last one, nothing is known of what
    was drawn: the count then goes on from a lower level. Any two counts with such a break between them look
    like a counter that was reset, whoever saw the failed reading, and their span is unknown, never zero.
    """

    def __init__(self, power_mw: Callable[[], int]) -> None:
        self._power_mw = power_mw
        self._last: tuple[int, int] | None = None
        self._twice_mw_ns = 0
        self._level_uj = 0

    def energy_uj(self, at_ns: int) -> int:
        """The count at ``at_ns``. Raises what reading the power raises."""
        last, self._last = self._last, None
        try:
            power_mw = self._power_mw()
        except Exception:
            self._break()
            raise
        if last is not None:
            step_ns = at_ns - last[0]
            if 0 <= step_ns <= _LONGEST_STEP_NS:
                self._twice_mw_ns += (power_mw + last[1]) * step_ns
            else:
                self._break()
        self._last = (at_ns, power_mw)
        return self._level_uj + self._twice_mw_ns * UJ_PER_MJ // (2 * NS_PER_S)

    def _break(self) -> None:
        self._level_uj -= _BREAK_UJ


def _import_nvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise SourceError(
            "NVML_EXTRA_MISSING", "GPU energy needs the extra 'nvml'", "pip install 'tao-flows[nvml]'"
        ) from error


def _error_name(error: Any) -> str:
    """``GPU_IS_LOST`` for NVMLError_GpuIsLost; the number for a code that this pynvml does not know."""
    name = type(error).__name__.partition("_")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper() or f"CODE_{error.value}"


def _read_code(error: Any) -> str:
    name = _error_name(error)
    return {"GPU_IS_LOST": "READ_VANISHED", "NO_PERMISSION": "READ_DENIED"}.get(name, f"READ_FAILED:{name}")


def _source_error(error: Any) -> SourceError:
    name = _error_name(error)
    if name == "LIBRARY_NOT_FOUND":
        return SourceError(
            "NVML_ABSENT",
            "libnvidia-ml.so.1 is not on this machine",
            "without an NVIDIA GPU nothing is missing; with one, install its driver, or give the container the "
            "'utility' driver capability",
        )
    if name in ("DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH", "FUNCTION_NOT_FOUND"):
        return SourceError("NVML_DRIVER", f"the NVIDIA driver does not answer: {name}", _DRIVER_REMEDY)
    if name == "NO_PERMISSION":
        return SourceError("NVML_PERMISSION", "NVML may not be used", "give this user access to /dev/nvidia*")
    return SourceError("NVML_FAILED", f"NVML failed: {name}", _DRIVER_REMEDY)
