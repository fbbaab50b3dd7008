"""A worker pool, described in a Block."""

from __future__ import annotations

from typing import Annotated, Any

from prefect.blocks.core import Block
from pydantic import Field, model_validator
from typing_extensions import Self

from prefect_blocks.fields import Strict, quantity
from tao_flows.pools import WorkerPool, pool_from_table


class WorkerPoolProfile(Strict, Block):
    """What tao-flows is to know of a work pool: where it stands, what it can do and what it costs.

    Example:
        Load a stored profile:
        ```python
        from prefect_blocks import WorkerPoolProfile

        worker_pool_profile = WorkerPoolProfile.load("BLOCK_NAME")
        ```
        Name it in the field `pools` of a Tao Controller block.
    """

    _block_type_name = "Worker Pool Profile"
    _block_type_slug = "tao-worker-pool-profile"
    _block_schema_capabilities = ["tao-worker-pool"]  # noqa: RUF012 - Prefect reads it as a plain list
    _description = "What tao-flows is to know of a work pool: its zone, power, price and capabilities."

    pool_id: str = Field(
        description="The work pool, and its queue where that is not the default one.",
        examples=["my-pool", "my-pool/gpu"],
    )
    zone: str = Field(
        default="",
        description="The grid zone whose carbon and price signals hold there, as those signals name it.",
        examples=["DE"],
    )
    capabilities: list[str] = Field(
        default_factory=list, description="What tasks may require of it.", examples=[["gpu", "large-memory"]]
    )
    online: bool = Field(default=True, description="Whether work may be sent there.")
    trusted: bool = Field(default=True, description="Whether it counts as trusted.")
    pue: float | None = Field(
        default=None, description="Power usage effectiveness, 1 or more; 1 if empty.", examples=[1.2]
    )
    price_per_h: float | None = Field(
        default=None, description="Price of an hour there, in the currency of the price signals.", examples=[2.5]
    )
    power_w: float | None = Field(default=None, description="Watts that a task draws there.", examples=[150.0])
    power_cap_w: float | None = Field(
        default=None, description="Watts that the whole pool should stay within.", examples=[2_000.0]
    )
    power_from: dict[str, Any] | None = Field(
        default=None,
        description="What tells its power now: prometheus (a URL), and preset or query.",
        examples=[{"prometheus": "http://prometheus:9090", "preset": "kepler"}],
    )
    temperature_limit_c: float | None = Field(
        default=None, description="Degrees Celsius above which no more work should go there.", examples=[80.0]
    )
    places: int | None = Field(
        default=None, description="Deferred tasks that may be planned to start there in one slot.", examples=[20]
    )
    dispatch_energy: Annotated[str, quantity("J")] | None = Field(
        default=None, description="Energy that sending a task there costs in itself.", examples=["5 J"]
    )
    queue_wait: Annotated[str, quantity("s")] | None = Field(
        default=None, description="How long a task waits there before it starts.", examples=["30s"]
    )
    energy: dict[str, Any] | None = Field(
        default=None,
        description="Energy of a task there, low, mean and high, while none of its own runs tell.",
        examples=[{"low": "80 J", "mean": "100 J", "high": "150 J"}],
    )
    runtime: dict[str, Any] | None = Field(
        default=None,
        description="Runtime of a task there, p50 and p95, while none of its own runs tell.",
        examples=[{"p50": "2m", "p95": "4m"}],
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.to_pool()
        return self

    def to_pool(self) -> WorkerPool:
        """The pool, as decisions know it."""
        renamed = {
            "dispatch_energy": "dispatch_energy_j",
            "queue_wait": "queue_wait_s",
            "energy": "energy_j",
            "runtime": "runtime_s",
        }
        fields = {renamed.get(name, name): getattr(self, name) for name in type(self).model_fields}
        # By the one parser of pools; a field that is cleared in the UI is an empty text.
        given = {name: value for name, value in fields.items() if value not in (None, "", [])}
        return pool_from_table({"pool_id": "", **given}, "worker pool profile")

    def to_config(self) -> dict[str, Any]:
        """The settings that it makes: the one pool."""
        return {"pools": (self.to_pool(),)}
