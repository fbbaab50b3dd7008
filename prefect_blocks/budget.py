"""An energy budget as a Block."""

from __future__ import annotations

from typing import Annotated, Any

from prefect.blocks.core import Block
from pydantic import Field, model_validator
from typing_extensions import Self

from prefect_blocks.fields import Strict, name_of, quantity
from tao_flows import budget as core


class EnergyBudget(Strict, Block):
    """Joules that tasks may use together in a window. The block's name is the budget's name.

    Example:
        Load a stored budget and give it to a task:
        ```python
        from prefect_blocks import EnergyBudget
        from tao_flows import tao_task

        energy_budget = EnergyBudget.load("BLOCK_NAME")

        @tao_task(budget=energy_budget.to_budget())
        def train(): ...
        ```
    """

    _block_type_name = "Energy Budget"
    _block_type_slug = "tao-energy-budget"
    _block_schema_capabilities = ["tao-energy-budget"]  # noqa: RUF012 - Prefect reads it as a plain list
    _description = "Joules that tasks may use together in a window: a limit, and a ceiling where it is hard."

    limit: Annotated[str, quantity("J")] | None = Field(
        default=None,
        description="Energy that tasks should stay within in a window; empty for a power cap.",
        examples=["40 J", "1.2 kWh"],
    )
    window: Annotated[str, quantity("s")] | None = Field(
        default=None,
        description="A duration, which rolls (one day if empty), or hour, day, week or month, which begin anew.",
        examples=["15m", "1d", "month"],
    )
    ceiling: Annotated[str, quantity("J")] | None = Field(
        default=None,
        description="Energy never exceeded in a window where decisions are enforced (of a power cap, power); "
        "leave empty for none.",
        examples=["2 kWh"],
    )
    timezone: str = Field(
        default="UTC",
        description="IANA name of the zone in which hour, day, week and month begin.",
        examples=["Europe/Berlin"],
    )
    scope: str = Field(
        default="",
        description="Tasks that are under it without naming it: global, team:NAME, flow:NAME or pool:NAME; "
        "leave empty for none.",
        examples=["team:search"],
    )
    power: Annotated[str, quantity("W")] | None = Field(
        default=None,
        description="In the place of a limit, a power cap: the mean over a short rolling window (60 s if empty).",
        examples=["500 W"],
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._parse("budget")
        return self

    def to_budget(self) -> core.EnergyBudget:
        """The budget, named as the block is.

        Raises:
            ValueError: the block has not been saved or loaded, so it has no name.
        """
        return self._parse(name_of(self))

    def to_config(self) -> dict[str, Any]:
        """The settings that it makes: the one budget.

        Raises:
            ValueError: as ``to_budget``.
        """
        budget = self.to_budget()
        return {"budgets": {budget.name: budget}}

    def _parse(self, name: str) -> core.EnergyBudget:
        # A field that is cleared in the UI is an empty text.
        return core.EnergyBudget.parse(
            name,
            self.limit or None,
            self.window or None,
            self.ceiling or None,
            self.timezone or "UTC",
            self.scope,
            self.power or None,
        )
