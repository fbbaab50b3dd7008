"""On a machine with an NVIDIA GPU: the energy counter against integrated power, at rest, held, and under load.

Prints JSON, asserts nothing. Needs the extra ``nvml`` and an otherwise idle GPU. The load is a loop of multiply-adds
that the driver compiles from PTX: no CUDA toolkit is needed. Where there is no GPU, or no libcuda, it says so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Final

from tao_flows.clock import SystemClock
from tao_flows.errors import SourceError
from tao_flows.gpu import Held, split_gpu_slot
from tao_flows.telemetry.nvml import NvmlSource, PowerIntegral
from tao_flows.units import j_from_uj

STEP_S: Final = 0.05
"""Between two readings of counter and power."""
USE_S: Final = 1.0
"""Between two looks at who uses the GPU."""
BURST_S: Final = 0.1
"""A load works and rests within this long."""
PHASES: Final = {"idle": (), "held": (0.0,), "load": (1.0,), "shared": (1.0, 0.25)}
"""The loads of each phase, each a process, by the share of time in which it works."""
PTX: Final = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry burn(.param .u64 out, .param .u32 rounds)
{
    .reg .pred %p;
    .reg .f32 %f<3>;
    .reg .b32 %r<3>;
    .reg .b64 %d<3>;
    ld.param.u64 %d1, [out];
    ld.param.u32 %r1, [rounds];
    cvta.to.global.u64 %d2, %d1;
    mov.f32 %f1, 0f3F800001;
    mov.f32 %f2, 0f3F7FFFFF;
    mov.u32 %r2, 0;
again:
    fma.rn.f32 %f1, %f1, %f2, %f2;
    fma.rn.f32 %f1, %f1, %f2, %f1;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p, %r2, %r1;
    @%p bra again;
    st.global.f32 [%d2], %f1;
    ret;
}
"""
BLOCKS, THREADS, ROUNDS = 2048, 256, 20_000


def burn(duty: float) -> None:
    """Works on the first GPU it sees for this share of the time, until its input ends."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            raise SystemExit(f"{name} failed with CUDA error {code}")

    device, context, module, function = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    out, rounds = ctypes.c_uint64(), ctypes.c_uint32(ROUNDS)
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(PTX))
    call("cuModuleGetFunction", ctypes.byref(function), module, b"burn")
    call("cuMemAlloc_v2", ctypes.byref(out), ctypes.c_size_t(4))
    parameters = (ctypes.c_void_p * 2)(ctypes.addressof(out), ctypes.addressof(rounds))
    os.set_blocking(0, False)
    print("ready", flush=True)
    while sys.stdin.buffer.raw.read(1) != b"":  # type: ignore[union-attr]
        begun = time.monotonic()
        while time.monotonic() - begun < duty * BURST_S:
            call("cuLaunchKernel", function, BLOCKS, 1, 1, THREADS, 1, 1, 0, None, parameters, None)
            call("cuCtxSynchronize")
        time.sleep(max(0.0, begun + BURST_S - time.monotonic()))


@contextmanager
def load(gpu: int, duty: float) -> Iterator[subprocess.Popen[str]]:
    """A process that works on a GPU.

    Raises:
        OSError: it cannot; with the reason.
    """
    env = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu)}
    command = [sys.executable, __file__, "--burn", str(duty)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=env, text=True, **pipes) as process:
        try:
            assert process.stdout
            assert process.stderr
            if process.stdout.readline() != "ready\n":
                raise OSError((process.stderr.read().strip().splitlines() or ["it ended without a word"])[-1])
            yield process
        finally:
            process.communicate()  # ends its input, and so the load


def watch(source: NvmlSource, gpu: int, seconds: float, duties: dict[int, float]) -> dict[str, Any]:
    """What counter, power and utilisation say over the same seconds; ``duties`` are of our loads, by process."""
    import pynvml

    name = f"gpu-{gpu}"
    position = [domain.id for domain in source.domains].index(name)
    handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
    powers_w: list[float] = []

    def power_mw() -> int:
        power = int(pynvml.nvmlDeviceGetPowerUsage(handle))
        powers_w.append(power / 1e3)
        return power

    integral, held, since_us = PowerIntegral(power_mw), Held(), time.time_ns() // 1000
    held.see(name, source.use(name))
    begun = looked = time.monotonic()
    counts, first_uj = [source.read()[position]], integral.energy_uj(time.monotonic_ns())
    last_uj = first_uj
    while time.monotonic() - begun < seconds:
        time.sleep(STEP_S)
        counts.append(source.read()[position])
        last_uj = integral.energy_uj(time.monotonic_ns())
        if time.monotonic() - looked >= USE_S:
            looked = time.monotonic()
            held.see(name, source.use(name))
    held.see(name, source.use(name))
    known = [(count.at_ns, count.raw_uj) for count in counts if count.raw_uj is not None]
    moved = [at_ns for (_, before), (at_ns, now) in pairwise(known) if now != before]
    counter_uj = known[-1][1] - known[0][1] if len(known) == len(counts) else None
    used = held.utilisation.get(name)
    slot = None
    if counter_uj is not None and counter_uj >= 0:
        slot = split_gpu_slot(counter_uj, None, held.pids[name], used, {pid: pid for pid in duties}.get)
    return {
        "wall_s": (counts[-1].at_ns - counts[0].at_ns) / 1e9,
        "counter_j": None if counter_uj is None else j_from_uj(counter_uj),
        "counter_step_s": statistics.median(b - a for a, b in pairwise(moved)) / 1e9 if len(moved) > 1 else None,
        "integrated_j": j_from_uj(last_uj - first_uj) if last_uj >= first_uj else None,
        "power_w": {"least": min(powers_w), "mean": statistics.fmean(powers_w), "most": max(powers_w)},
        "holders": None if held.pids[name] is None else sorted(held.pids[name] or ()),
        "loads": [{"pid": pid, "duty": duty, "utilised_s": (used or {}).get(pid)} for pid, duty in duties.items()],
        "utilised_s": used,
        "utilisation_code": held.codes.get(name, ""),
        "samples_since_begin": samples(handle, since_us),
        "split": slot
        and {"code": slot.code, "loads_j": {pid: j_from_uj(uj) for pid, uj in slot.parties_uj.items()}}
        | {"allocated_idle_j": j_from_uj(slot.allocated_idle_uj), "unattributed_j": j_from_uj(slot.unattributed_uj)},
    }


def samples(handle: Any, since_us: int) -> list[dict[str, int]] | str:
    """NVML's own samples since a time, as it gives them; or its error."""
    import pynvml

    try:
        given = pynvml.nvmlDeviceGetProcessUtilization(handle, since_us)
    except pynvml.NVMLError as error:
        return str(error)
    return [
        {"pid": one.pid, "at_us": one.timeStamp - since_us, "sm": one.smUtil, "memory": one.memUtil} for one in given
    ]


def check(gpu: int, seconds: float, settle_s: float) -> dict[str, Any]:
    try:
        import pynvml

        source = NvmlSource(SystemClock())
    except ImportError as error:
        return {"left_out": str(error)}
    except SourceError as error:
        return {"left_out": f"{error.code}: {error.summary}"}
    domains = {domain.id: domain for domain in source.domains}
    if f"gpu-{gpu}" not in domains:
        return {"left_out": f"there is no gpu-{gpu}: there are {', '.join(domains)}"}
    phases: dict[str, Any] = {}
    for phase, duties in PHASES.items():
        try:
            with ExitStack() as loads:
                pids = {loads.enter_context(load(gpu, duty)).pid: duty for duty in duties}
                time.sleep(settle_s if duties else 0.0)
                phases[phase] = watch(source, gpu, seconds, pids)
        except (OSError, pynvml.NVMLError) as error:
            phases[phase] = {"left_out": str(error)}
    events = list(domains[f"gpu-{gpu}"].events)
    source.close()
    return {"gpu": f"gpu-{gpu}", "uuid": source.uuids[f"gpu-{gpu}"], "events": events, "phases": phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpu", type=int, default=0, help="its number in nvidia-smi")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each phase is")
    parser.add_argument(
        "--settle", type=float, default=2.0, help="seconds from a load's start to its phase: power and utilisation lag"
    )
    parser.add_argument("--burn", type=float, metavar="DUTY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.seconds > 0 and arguments.settle >= 0):
        parser.error("--seconds must be more than 0, and --settle not less")
    if arguments.burn is not None:
        burn(arguments.burn)
        return
    found = {"schema": "tao-flows/benchmark-gpu/1", **check(arguments.gpu, arguments.seconds, arguments.settle)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
