"""What the blocks' fields have in common."""

from __future__ import annotations

from typing import Any, Final

from prefect.blocks.core import Block
from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, model_validator

from tao_flows.tomlfile import CONNECTION, did_you_mean

_PREFECTS: Final = frozenset({"block_type_slug", "_block_document_id", "_block_document_name", "_is_anonymous"})
"""What Prefect writes beside the fields of a block that it keeps within another, or hands to a flow as a parameter."""


class Strict(BaseModel):
    """A mistyped field is an error, as in a file; and an error does not repeat what was given, which may be a secret."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields and name not in _PREFECTS:
                raise ValueError(f"unknown field {name!r}; {did_you_mean(str(name), cls.model_fields)}")
        return values


def quantity(unit: str) -> BeforeValidator:
    """Makes a plain number a text in ``unit``: the UI edits a text field, and code may give a number."""

    def as_text(value: Any) -> Any:
        plain_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return f"{value!r} {unit}" if plain_number else value

    return BeforeValidator(as_text)


def revealed(secret: SecretStr | None) -> str:
    """What a secret holds; empty where there is none."""
    return "" if secret is None else secret.get_secret_value()


def name_of(block: Block) -> str:
    """What a block is saved as.

    Raises:
        ValueError: it has not been saved or loaded, so it has no name.
    """
    if not block._block_document_name:  # noqa: SLF001 - Prefect gives it no public name
        kind = type(block).__name__
        raise ValueError(f'this {kind} has no name yet: save it with .save("NAME"), or load it')
    return block._block_document_name  # noqa: SLF001


def reference(block: Block) -> str:
    """``conn:SLUG/NAME``: names a block in settings, in the place of the secret that it holds.

    Raises:
        ValueError: as ``name_of``.
    """
    return f"{CONNECTION}{type(block).get_block_type_slug()}/{name_of(block)}"
