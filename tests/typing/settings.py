from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from typing_extensions import assert_type

from tao_flows import EnergyBudget, TaoConfig, WorkerPool
from tao_flows.config import ConfigWatcher, Resolved, load_config

resolved = load_config(arguments={"mode": "off"})
assert_type(resolved, Resolved)
assert_type(ConfigWatcher().get(), Resolved)
assert_type(resolved.config, TaoConfig)
assert_type(resolved.config.mode, Literal["off", "observe", "advise", "enforce"])
assert_type(resolved.config.budgets, Mapping[str, EnergyBudget])
TaoConfig(mode="enforc")  # type: ignore[arg-type]

assert_type(EnergyBudget.parse("team-a", "1.2 kWh"), EnergyBudget)
assert_type(EnergyBudget("team-a", limit_j=40.0).ceiling_j, float | None)
EnergyBudget("team-a", limit_j="40 J")  # type: ignore[arg-type]

assert_type(WorkerPool("north").price_per_h, float | None)
