"""The hook of the connection type ``tao_flows``: what Airflow's form shows, and its Test button."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_plugin import _compat
from airflow_plugin.connections import Found
from airflow_plugin.provider_info import CONNECTION_TYPE, FORM, HOOK_NAME
from tao_flows.errors import TaoError

if TYPE_CHECKING:
    from airflow.sdk import BaseHook
else:
    BaseHook = _compat.hook_base()


class TaoHook(BaseHook):  # type: ignore[misc]
    """A ledger, or the key of a signal's provider.

    Args:
        tao_conn_id: the connection's name.
    """

    conn_name_attr = "tao_conn_id"
    default_conn_name = "tao_flows_default"
    conn_type = CONNECTION_TYPE
    hook_name = HOOK_NAME

    def __init__(self, tao_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.tao_conn_id = tao_conn_id

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The form's labels; Airflow before 3.2 asks for them here and not in the provider's metadata."""
        return {key.replace("-", "_"): value for key, value in FORM.items()}

    def test_connection(self) -> tuple[bool, str]:
        """Whether the ledger can be read. A key is not tried: its provider is asked when the signal is."""
        found = Found.of(self.get_connection(self.tao_conn_id))
        if not found.host:
            return bool(found.password or found.extra), "no host: taken for a key; the provider is not asked"
        try:
            ledger = found.ledger()
            try:
                runs = ledger.counts()["runs"]
            finally:
                ledger.close()
        except TaoError as error:
            return error.code == "LEDGER_WRITE_ONLY", f"{error.summary} [{error.code}]"
        return True, f"{runs:,} runs recorded"
