"""The libraries, each measuring a block in its own idiom, with nothing patched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

J_PER_KWH: Final = 3.6e6
CORE_W: Final = 50.0
"""What a busy processor of the fake node draws, in ``metering.py``; a processor at rest draws nothing there."""


class Library(NamedTuple):
    """A library in its own idiom."""

    window: Callable[[Callable[[], object]], Any]
    """Runs a block in a window."""
    joules: Callable[[Any], float | None]
    """Those of what that gave."""
    cpu_s: Callable[[Any], float | None] = lambda _: None
    """CPU seconds of what that gave, where the library tells them."""
    charged_j: Callable[[Any], float | None] | None = None
    """The joules it says the block cost, where these are not all that it read."""


def tao_flows() -> Library:
    from tao_flows import measure

    def window(block: Callable[[], object]) -> Any:
        with measure("block") as measured:
            block()
        return measured

    return Library(window, _counted_j, lambda measured: measured.cpu_s, lambda measured: measured.energy.value_j)


def tao_flows_read() -> Library:
    from tao_flows import measure

    def window(block: Callable[[], object]) -> Any:
        with measure("block") as measured:
            block()
        measured.energy  # noqa: B018 - the reading of it is what is timed
        return measured

    return Library(window, _counted_j)


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

    return Library(window, lambda result: sum(uj for uj in (*(result.pkg or ()), *(result.dram or ())) if uj > 0) / 1e6)


def zeus() -> Library:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(gpu_indices=[])

    def window(block: Callable[[], object]) -> Any:
        monitor.begin_window("block")
        block()
        return monitor.end_window("block")

    return Library(window, lambda got: sum((got.cpu_energy or {}).values()) + sum((got.dram_energy or {}).values()))


def pyjoules() -> Library:
    from pyJoules.device import DeviceFactory
    from pyJoules.energy_meter import EnergyMeter

    meter = EnergyMeter(DeviceFactory.create_devices())

    def window(block: Callable[[], object]) -> Any:
        meter.start()
        block()
        meter.stop()
        return meter.get_trace()[0].energy

    return Library(window, lambda uj_by_domain: sum(uj_by_domain.values()) / 1e6)


def carbontracker() -> Library:
    from carbontracker.constants import PUE_2023
    from carbontracker.tracker import CarbonTracker

    # As many epochs as there may be windows; nothing is predicted after the first.
    tracker = CarbonTracker(epochs=10**9, epochs_before_pred=0, components="cpu", verbose=0)

    def window(block: Callable[[], object]) -> Any:
        tracker.epoch_start()
        block()
        tracker.epoch_end()
        return tracker.tracker

    # Its figures include the mean overhead of the world's data centres.
    return Library(window, lambda thread: float(thread.total_energy_per_epoch()[-1]) * J_PER_KWH / PUE_2023)


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

    return Library(window, _codecarbon_j)


def _codecarbon_j(data: Any) -> float:
    return float(data.cpu_energy) * J_PER_KWH


def codecarbon_share() -> Library:
    """The one figure by process that codecarbon has: its estimate, told the true watts. CPU time follows from it."""
    from codecarbon.core.util import count_cpus

    window, *_ = codecarbon_task(
        tracking_mode="process", force_mode_cpu_load=True, force_cpu_power=CORE_W * count_cpus()
    )
    return Library(window, _codecarbon_j, lambda data: _codecarbon_j(data) / CORE_W)


def codecarbon_tracker() -> Library:
    def window(block: Callable[[], object]) -> Any:
        with _codecarbon_tracker() as tracker:
            block()
        return tracker

    return Library(window, lambda tracker: _codecarbon_j(tracker.final_emissions_data))


@dataclass(frozen=True)
class Row:
    title: str
    distribution: str
    make: Callable[[], Library]
    reads: str
    """``tree``, ``sysfs`` (the same zones, whose counters are files of the kernel's), or ``nothing``."""
    needs_root: bool = True
    agent: bool = False
    """Whether a node agent serves it."""


ROWS: Final = {
    "tao-flows": Row("tao-flows measure()", "tao-flows", tao_flows, "tree", needs_root=False),
    "tao-flows-read": Row(
        "tao-flows measure(), energy read", "tao-flows", tao_flows_read, "tree", needs_root=False
    ),
    "tao-flows-sysfs": Row("tao-flows measure(), counters in sysfs", "tao-flows", tao_flows, "sysfs"),
    "tao-flows-estimate": Row("tao-flows measure(), estimate", "tao-flows", tao_flows, "nothing", needs_root=False),
    "tao-flows-agent": Row("tao-flows measure(), with the agent", "tao-flows", tao_flows, "tree", agent=True),
    "pyrapl": Row("pyRAPL begin/end", "pyRAPL", pyrapl, "tree"),
    "pyjoules": Row("pyJoules start/stop", "pyJoules", pyjoules, "tree"),
    "zeus": Row("zeus begin_window/end_window", "zeus", zeus, "tree"),
    "carbontracker": Row("carbontracker epoch_start/epoch_end", "carbontracker", carbontracker, "tree"),
    "codecarbon-task": Row("codecarbon start_task/stop_task", "codecarbon", codecarbon_task, "tree"),
    "codecarbon-process": Row(
        "codecarbon start_task/stop_task, process mode", "codecarbon",
        lambda: codecarbon_task(tracking_mode="process"), "tree",
    ),
    "codecarbon-tracker": Row("codecarbon tracker, start/stop", "codecarbon", codecarbon_tracker, "tree"),
    "codecarbon-estimate": Row(
        "codecarbon start_task/stop_task, estimate", "codecarbon",
        lambda: codecarbon_task(force_mode_cpu_load=True), "nothing", needs_root=False,
    ),
    "codecarbon-share": Row(
        "codecarbon start_task/stop_task, process mode, estimate", "codecarbon", codecarbon_share, "nothing",
        needs_root=False,
    ),
}  # fmt: skip
BASELINE: Final = "tao-flows"
