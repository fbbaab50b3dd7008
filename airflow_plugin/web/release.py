"""Starting work that waits, from a page: what the form says, checked, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from airflow_plugin.facts import ENGINE
from tao_flows.errors import InputError
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import RunKey

REASON = "in Airflow's UI"
_ODD_FORM = "open the page anew and try again"


def key_of(form: Mapping[str, str], namespace: str) -> RunKey:
    """The try that a form names.

    Args:
        form: the fields of ``RunKey``.
        namespace: this deployment's; another's tries are not released here.

    Raises:
        InputError: BAD_FORM, a field is missing or odd; NOT_OURS, the try is another engine's or deployment's.
    """
    try:
        texts = {each.name: form[each.name] for each in fields(RunKey) if each.name != "try_number"}
        key = RunKey(**texts, try_number=int(form["try_number"]))
    except (KeyError, ValueError) as error:
        raise InputError("BAD_FORM", f"the form is not whole: {error}", _ODD_FORM) from error
    if (key.engine, key.namespace) != (ENGINE, namespace) or not key.flow:
        where = f"{key.engine}, {key.namespace}" if key.namespace else key.engine
        remedy = "release it where it waits, or with `tao-flows release`"
        raise InputError("NOT_OURS", f"what waits there is not this Airflow's ({where})", remedy)
    return key


def release(ledger: Ledger, key: RunKey, said_by: str) -> bool:
    """Has a try start now; whether it was still waiting. Who said so is kept with it, and as a decision of its own.

    Raises:
        LedgerError: the ledger cannot be written.
    """
    return bool(DeferralStore(ledger).release([key], said_by=said_by, reason=REASON))
