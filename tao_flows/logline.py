"""The one line that a task's own log has of it."""

from __future__ import annotations

from tao_flows.figures import Measurement
from tao_flows.records import DecisionRecord
from tao_flows.units import format_duration, format_energy_interval, format_power


def log_line(measured: Measurement, decision: DecisionRecord | None) -> str:
    """What a try cost, and what was decided on it."""
    energy = measured.energy
    text = "energy unknown"
    if energy.value_j is not None:
        interval = format_energy_interval(energy.value_j, energy.low_j, energy.high_j)
        text = f"energy {interval} {energy.quality}, {format_power(measured.power_w)}"
    elif energy.unknown_parts:
        text += f" ({', '.join(energy.unknown_parts)})"
    text += f", CPU {format_duration(measured.cpu_s)}"
    if decision is not None:
        text += f"; decision {decision.action}"
        if decision.mode == "advise" and decision.action != "run":
            text += f" (advised): {decision.reason}"
    return text
