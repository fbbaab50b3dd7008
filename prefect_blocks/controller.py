"""tao-flows' settings as a Block."""

from __future__ import annotations

from typing import Any

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, SecretStr, model_validator
from typing_extensions import Self

from tao_flows.config import SETTINGS, LogLevel, ReportArtifacts, parse_settings
from tao_flows.rules import Mode


def _described(name: str) -> str:
    doc = SETTINGS[name].metadata["doc"]
    return f"{doc[0].upper()}{doc[1:]}; leave empty for the file's or the default."


class TaoController(Block):
    """Settings of tao-flows for the flows that name this block. The environment overrides them.

    Example:
        Load a stored block:
        ```python
        from prefect_blocks import TaoController

        tao_controller = TaoController.load("BLOCK_NAME")
        ```
        Have every flow run of a work pool read it: set `TAO_FLOWS_PREFECT_BLOCK=BLOCK_NAME` in its environment.
    """

    _block_type_name = "Tao Controller"
    _block_type_slug = "tao-controller"
    _block_schema_capabilities = ["tao-settings"]  # noqa: RUF012 - Prefect reads it as a plain list
    _description = (
        "Settings of tao-flows, kept where Prefect keeps its own; mode off switches it off without a redeploy."
    )

    # A mistyped setting is an error, as in a file.
    model_config = ConfigDict(extra="forbid")

    mode: Mode | None = Field(default=None, description=_described("mode"))
    # Secret, since the URL of a database may hold its password.
    ledger: SecretStr | None = Field(default=None, description=_described("ledger"))
    sources: list[str] = Field(default_factory=list, description=_described("sources"))
    namespace: str | None = Field(default=None, description=_described("namespace"))
    team: str | None = Field(default=None, description=_described("team"))
    owner: str | None = Field(default=None, description=_described("owner"))
    cluster: str | None = Field(default=None, description=_described("cluster"))
    model_id: str | None = Field(default=None, description=_described("model_id"))
    tags: list[str] = Field(default_factory=list, description=_described("tags"))
    log_level: LogLevel | None = Field(default=None, description=_described("log_level"))
    report_artifacts: ReportArtifacts | None = Field(default=None, description=_described("report_artifacts"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        # By the one parser of settings, so that a block cannot hold what a file may not.
        parse_settings("block", self.to_config())
        return self

    def to_config(self) -> dict[str, Any]:
        """What the block sets, for ``load_config(engine=...)``; fields left empty are not in it."""
        given = {name: getattr(self, name) for name in SETTINGS if name in type(self).model_fields}
        if isinstance(self.ledger, SecretStr):
            given["ledger"] = self.ledger.get_secret_value()
        return {name: value for name, value in given.items() if value}
