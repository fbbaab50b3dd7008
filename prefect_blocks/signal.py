"""Carbon intensity and electricity price of a zone, each as a Block that may hold its provider's key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import Field, SecretStr, model_validator
from typing_extensions import Self

from prefect_blocks.fields import Strict, quantity, reference, revealed
from tao_flows.signals.keys import Credentials
from tao_flows.signals.spec import parse_signals
from tao_flows.tomlfile import CONNECTION


class _Signal(Strict):
    """The fields and the ways of both."""

    table: ClassVar[str]
    """``carbon`` or ``price``."""

    zone: str = Field(description="The grid zone, as worker pool profiles name it.", examples=["DE"])
    provider: str = Field(
        default="", description="Who tells it; leave empty for a file or a fixed value.", examples=["electricitymaps"]
    )
    area: str = Field(
        default="", description="What the provider or the file calls the zone, if not the same.", examples=["DE-LU"]
    )
    user: str = Field(default="", description="The provider's name for its user, where it asks for one.")
    key: SecretStr | None = Field(default=None, description="The provider's key, token or password.")
    url: str = Field(default="", description="The provider's address, if not its usual one.")
    csv: str = Field(
        default="",
        description="In the place of a provider, a file of time,zone,value[,issued_at].",
        examples=["/srv/co2.csv"],
    )
    column: str = Field(default="", description="The heading of the values in that file; value if empty.")
    value: float | None = Field(
        default=None, description="In the place of a provider, a fixed value.", examples=[350.0]
    )
    max_age: Annotated[str, quantity("s")] = Field(
        default="", description="How old it may be and still count.", examples=["3h"]
    )
    refresh: Annotated[str, quantity("s")] = Field(
        default="", description="How often the provider is asked.", examples=["15m"]
    )
    timeout: Annotated[str, quantity("s")] = Field(
        default="", description="How long an answer of the provider is waited for.", examples=["2s"]
    )
    allow_http: bool = Field(default=False, description="Whether the address may be one without encryption.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        # By the one parser of signals. That a key has no name of its own yet is no mistake.
        self._parsed(f"{CONNECTION}unsaved")
        return self

    def to_config(self) -> dict[str, Any]:
        """The settings that it makes: the one signal. A key is named in it, and not told.

        Raises:
            ValueError: it holds a key, and has not been saved or loaded.
        """
        return {"signals": self._parsed(reference(self) if revealed(self.key) else "")}  # type: ignore[arg-type]

    def to_credentials(self) -> Credentials:
        """What its provider knows its user by; the key is empty where there is none."""
        return Credentials(revealed(self.key).strip(), self.user)

    def _parsed(self, key: str) -> dict[str, dict[str, Any]]:
        skipped = {"zone", "area", "key"}
        given = {name: getattr(self, name) for name in type(self).model_fields if name not in skipped}
        entry = {name: value for name, value in given.items() if value not in (None, "", False)}
        entry |= {"zone": self.area} if self.area else {}
        entry |= {"key": key} if revealed(self.key) else {}
        signals = {self.table: {self.zone: entry}}
        parse_signals(signals, Path())
        return signals


class CarbonSignal(_Signal, Block):
    """Carbon intensity of a grid zone, from a provider, a file or by hand.

    Example:
        Load a stored signal:
        ```python
        from prefect_blocks import CarbonSignal

        carbon_signal = CarbonSignal.load("BLOCK_NAME")
        ```
        Name it in the field `carbon` of a Tao Controller block.
    """

    _block_type_name = "Carbon Signal"
    _block_type_slug = "tao-carbon-signal"
    _block_schema_capabilities = ["tao-signal"]  # noqa: RUF012 - Prefect reads it as a plain list
    _description = "Carbon intensity of a grid zone: who tells it, and by which key."

    table = "carbon"
    kind: Literal["average", "marginal"] | None = Field(
        default=None, description="Of the average or the marginal kilowatt-hour; leave empty for the provider's."
    )
    unit: Literal["g/kWh", "kg/MWh", "lb/MWh"] | None = Field(
        default=None, description="Of a file or a fixed value; g/kWh if empty."
    )


class PriceSignal(_Signal, Block):
    """Electricity price of a grid zone, from a provider, a file or by hand.

    Example:
        Load a stored signal:
        ```python
        from prefect_blocks import PriceSignal

        price_signal = PriceSignal.load("BLOCK_NAME")
        ```
        Name it in the field `prices` of a Tao Controller block.
    """

    _block_type_name = "Price Signal"
    _block_type_slug = "tao-price-signal"
    _block_schema_capabilities = ["tao-signal"]  # noqa: RUF012 - Prefect reads it as a plain list
    _description = "Electricity price of a grid zone: who tells it, and by which key."

    table = "price"
    unit: str = Field(
        default="", description="A currency a kWh or MWh; leave empty for the provider's.", examples=["EUR/MWh"]
    )
