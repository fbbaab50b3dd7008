"""What the ledger knows of the bundles of DAG runs."""

from __future__ import annotations

from airflow_plugin.facts import ENGINE, run_ref
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.seals import Seal, last_of_flow, last_seal


def found_bundle(ledger: Ledger, namespace: str, dag_id: str, run_id: str = "") -> dict[str, str] | None:
    """The digest and the path of a run's bundle, or of the DAG's run that was sealed last; None where there is none.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    seal: Seal | None
    if run_id:
        seal = last_seal(ledger, run_ref(dag_id, run_id, namespace))
    else:
        seal = found[1] if (found := last_of_flow(ledger, ENGINE, namespace, dag_id)) else None
    return None if seal is None else {"digest": seal.digest, "path": seal.place}
