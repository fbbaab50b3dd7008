"""The libraries, each measuring a block in its own idiom, with nothing patched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

J_PER_KWH: Final = 3.6e6

Window = Callable[[Callable[[], object]], Any]
Library = tuple[Window, Callable[[Any], float]]
"""Runs a block in a window, in the library's own idiom; and tells the joules of what that gave."""


def tao_flows() -> Library:
    from tao_flows import measure

    def window(block: Callable[[], object]) -> Any:
        with measure("block") as measured:
            block()
        return measured

    return window, _counted_j


def tao_flows_read() -> Library:
    from tao_flows import measure

    def window(block: Callable[[], object]) -> Any:
        with measure("block") as measured:
            block()
        measured.energy  # noqa: B018 - the reading of it is what is timed
        return measured

    return window, _counted_j


def _counted_j(measured: Any) -> float:
    return (measured.account.counter_uj or 0) / 1e6


def pyrapl() -> Library:
    import pyRAPL

    pyRAPL.setup()

    def window(block: Callable[[], object]) -> Any:
        measurement = pyRAPL.Measurement("block")
        measurement.begin()
        block()
        measurement.end()
        return measurement.result

    return window, lambda result: sum(uj for uj in (*(result.pkg or ()), *(result.dram or ())) if uj > 0) / 1e6


def zeus() -> Library:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(gpu_indices=[])

    def window(block: Callable[[], object]) -> Any:
        monitor.begin_window("block")
        block()
        return monitor.end_window("block")

    return window, lambda got: sum((got.cpu_energy or {}).values()) + sum((got.dram_energy or {}).values())


def _codecarbon_tracker(**options: Any) -> Any:
    from codecarbon import OfflineEmissionsTracker

    return OfflineEmissionsTracker(
        country_iso_code="FRA", save_to_file=False, log_level="error", allow_multiple_runs=True, **options
    )


def codecarbon_task(**options: Any) -> Library:
    tracker = _codecarbon_tracker(**options)

    def window(block: Callable[[], object]) -> Any:
        tracker.start_task()
        block()
        return tracker.stop_task()

    return window, lambda data: data.cpu_energy * J_PER_KWH


def codecarbon_tracker() -> Library:
    def window(block: Callable[[], object]) -> Any:
        with _codecarbon_tracker() as tracker:
            block()
        return tracker

    return window, lambda tracker: tracker.final_emissions_data.cpu_energy * J_PER_KWH


@dataclass(frozen=True)
class Row:
    title: str
    distribution: str
    make: Callable[[], Library]
    reads: str
    """``tree``, ``sysfs`` (the same zones, whose counters are files of the kernel's), or ``nothing``."""
    needs_root: bool = True


ROWS: Final = {
    "tao-flows": Row("tao-flows measure()", "tao-flows", tao_flows, "tree", needs_root=False),
    "tao-flows-read": Row(
        "tao-flows measure(), energy read", "tao-flows", tao_flows_read, "tree", needs_root=False
    ),
    "tao-flows-sysfs": Row("tao-flows measure(), counters in sysfs", "tao-flows", tao_flows, "sysfs"),
    "tao-flows-estimate": Row("tao-flows measure(), estimate", "tao-flows", tao_flows, "nothing", needs_root=False),
    "pyrapl": Row("pyRAPL begin/end", "pyRAPL", pyrapl, "tree"),
    "zeus": Row("zeus begin_window/end_window", "zeus", zeus, "tree"),
    "codecarbon-task": Row("codecarbon start_task/stop_task", "codecarbon", codecarbon_task, "tree"),
    "codecarbon-tracker": Row("codecarbon tracker, start/stop", "codecarbon", codecarbon_tracker, "tree"),
    "codecarbon-estimate": Row(
        "codecarbon start_task/stop_task, estimate", "codecarbon",
        lambda: codecarbon_task(force_mode_cpu_load=True), "nothing", needs_root=False,
    ),
}  # fmt: skip
BASELINE: Final = "tao-flows"
