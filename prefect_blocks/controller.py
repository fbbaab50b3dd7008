"""tao-flows' settings as a Block, which names the other blocks that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prefect.blocks.core import Block
from pydantic import Field, model_validator
from typing_extensions import Self

from prefect_blocks.budget import EnergyBudget
from prefect_blocks.fields import Strict, reference, revealed
from prefect_blocks.ledger import LedgerUrl
from prefect_blocks.pool import WorkerPoolProfile
from prefect_blocks.signal import CarbonSignal, PriceSignal
from tao_flows.config import SETTINGS, LogLevel, parse_settings
from tao_flows.rules import Mode

Part = EnergyBudget | WorkerPoolProfile | CarbonSignal | PriceSignal
PARTS: Final[Mapping[str, type[Part]]] = {
    "budgets": EnergyBudget,
    "pools": WorkerPoolProfile,
    "carbon": CarbonSignal,
    "prices": PriceSignal,
}
"""By field of the controller, the blocks that it names."""


def _described(name: str) -> str:
    doc = SETTINGS[name].metadata["doc"]
    return f"{doc[0].upper()}{doc[1:]}; leave empty for the file's or the default."


def _names(kind: str, of: str) -> Any:
    return Field(
        default_factory=list,
        description=f"Names of the {kind} blocks of the {of}; leave empty for the file's.",
        examples=[["north", "south"]],
    )


class TaoController(Strict, Block):
    """Settings of tao-flows for whatever names this block. The environment overrides them.

    Example:
        Load a stored block:
        ```python
        from prefect_blocks import TaoController

        tao_controller = TaoController.load("BLOCK_NAME")
        ```
        Have every flow run of a work pool, its worker and the controller process read it: set
        `TAO_FLOWS_PREFECT_BLOCK=BLOCK_NAME` in their environment.
    """

    _block_type_name = "Tao Controller"
    _block_type_slug = "tao-controller"
    _block_schema_capabilities = ["tao-settings"]  # noqa: RUF012 - Prefect reads it as a plain list
    _description = (
        "Settings of tao-flows, kept where Prefect keeps its own; mode off switches it off without a redeploy."
    )

    mode: Mode | None = Field(default=None, description=_described("mode"))
    ledger: LedgerUrl | None = Field(default=None, description=_described("ledger"))
    # By name: Prefect keeps a reference to a block only where it is a field's whole value, and copies a list's into the
    # document, with their secrets in clear.
    pools: list[str] = _names("Worker Pool Profile", "pools")
    carbon: list[str] = _names("Carbon Signal", "zones")
    prices: list[str] = _names("Price Signal", "zones")
    budgets: list[str] = _names("Energy Budget", "budgets")
    rules: list[dict[str, Any]] = Field(default_factory=list, description=_described("rules"))
    sources: list[str] = Field(default_factory=list, description=_described("sources"))
    namespace: str | None = Field(default=None, description=_described("namespace"))
    team: str | None = Field(default=None, description=_described("team"))
    owner: str | None = Field(default=None, description=_described("owner"))
    cluster: str | None = Field(default=None, description=_described("cluster"))
    model_id: str | None = Field(default=None, description=_described("model_id"))
    tags: list[str] = Field(default_factory=list, description=_described("tags"))
    log_level: LogLevel | None = Field(default=None, description=_described("log_level"))
    report_artifacts: str | None = Field(
        default=None, description=_described("report_artifacts"), examples=["always", "failures", "1/10"]
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        # By the one parser of settings, so that a block cannot hold what a file may not.
        parse_settings("block", self._own())
        return self

    def to_config(self) -> dict[str, Any]:
        """What the block and those that it names set, for ``load_config(engine=...)``; what is empty is not in it.

        Keys and passwords are not in it: blocks that hold one are named.

        Raises:
            ValueError: a block that it names is not there; or its ledger has a password, and neither has been saved.
            ConfigError: two of the blocks do not go together.
        """
        # Prefect decides at run time whether this is a coroutine, and its types do not know how to ask.
        return self.joined(kind.load(name, _sync=True) for kind, name in self.named())  # type: ignore[call-arg,misc]

    async def ato_config(self) -> dict[str, Any]:
        """The same to be awaited, as Prefect names it."""
        return self.joined([await kind.aload(name) for kind, name in self.named()])

    def named(self) -> Iterator[tuple[type[Part], str]]:
        """The blocks that it names, each with its type."""
        for field, kind in PARTS.items():
            for name in getattr(self, field):
                yield kind, name

    def joined(self, parts: Iterable[Part]) -> dict[str, Any]:
        """What the block sets, and ``parts`` in the place of those that it names.

        Raises:
            ValueError, ConfigError: as ``to_config``.
        """
        config = self._own()
        if self.ledger is not None:
            config |= self._ledger(self.ledger)
        for part in parts:
            config = _with(config, part)
        return config

    def _own(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in SETTINGS if name in type(self).model_fields}
        return {name: value for name, value in given.items() if value and name not in {"ledger", *PARTS}}

    def _ledger(self, ledger: LedgerUrl) -> dict[str, Any]:
        # One that was never saved by itself is kept in this block's document, and found by this block's name.
        own = revealed(ledger.password) and not ledger._block_document_name  # noqa: SLF001 - it has no public name
        return {"ledger": reference(self)} if own else ledger.to_config()


def _with(config: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """Settings with those of one more block.

    Raises:
        ConfigError: it does not go with the others.
    """
    joined = dict(config)
    for name, value in part.to_config().items():
        if name == "pools":
            joined[name] = (*config.get(name, ()), *value)
        elif name == "budgets":
            joined[name] = {**config.get(name, {}), **value}
        else:
            (table, zones) = next(iter(value.items()))
            before = config.get(name, {})
            joined[name] = {**before, table: {**before.get(table, {}), **zones}}
    parse_settings("block", joined)
    return joined
