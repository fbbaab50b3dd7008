"""What a repository such as Zenodo asks about a bundle that is deposited there: DataCite metadata, as a file.

https://datacite-metadata-schema.readthedocs.io/ (4.5). No DOI is in it, which the repository gives; nothing is uploaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import tao_flows
from tao_flows.errors import InputError
from tao_flows.governance.keys import VerifyKey
from tao_flows.governance.verify import verify

SCHEMA_VERSION: Final = "http://datacite.org/schema/kernel-4"
"""The namespace of the schema, which DataCite asks for to the letter."""
_SCOPE: Final = (
    "This record does not establish compliance with Regulation (EU) 2024/1689. Integrity checks show that it is "
    "unchanged since it was signed, not that its measurements are correct."
)


def deposit(
    bundle: Path,
    keys: Sequence[VerifyKey],
    *,
    creators: Sequence[str],
    publisher: str,
    now: datetime,
    rights: str = "",
) -> dict[str, Any]:
    """The metadata of a bundle that verifies.

    Args:
        bundle: a directory or an archive.
        keys: those that it may be signed with.
        creators: persons or organisations, as they are to be cited.
        publisher: the repository's or the organisation's name.
        now: the present; its year is the year of publication.
        rights: an SPDX identifier; empty where none is stated.

    Raises:
        InputError: the bundle cannot be read, does not verify, or nobody made it.
    """
    verdict = verify(bundle, keys)
    statement = verdict.statement
    if not verdict.ok or statement is None:
        codes = ", ".join(dict.fromkeys(failure.code for failure in verdict.failures))
        remedy = "deposit what verifies: tao-flows verify shows what is wrong"
        raise InputError("BUNDLE_NOT_VERIFIED", f"{bundle} does not verify: {codes}", remedy)
    if not creators or not all(creators) or not publisher:
        raise InputError("NO_CREATOR", "a deposit names who made it, and who publishes it", "give both")
    run = statement.about.get("run", {})
    named = f"{run['flow']}, run {run['run_id']}" if "flow" in run else f"run {run.get('run_id', bundle.name)}"
    missing = "" if statement.complete else " It is incomplete: run.json says what is missing."
    said = f"Energy and decisions of one run, as tao-flows {tao_flows.__version__} recorded and signed them.{missing}"
    return {
        "schemaVersion": SCHEMA_VERSION,
        "creators": [{"name": name} for name in creators],
        "titles": [{"title": f"Energy record of {named}", "lang": "en"}],
        "publisher": {"name": publisher},
        "publicationYear": str(now.year),
        "types": {"resourceTypeGeneral": "Dataset", "resourceType": "Signed energy record"},
        "language": "en",
        "version": str(statement.revision),
        "descriptions": [
            {"description": said, "descriptionType": "Abstract", "lang": "en"},
            {"description": _SCOPE, "descriptionType": "Other", "lang": "en"},
        ],
        "alternateIdentifiers": [
            {"alternateIdentifier": f"sha256:{verdict.attestation}", "alternateIdentifierType": "attestation digest"},
            {"alternateIdentifier": f"sha256:{statement.keyid}", "alternateIdentifierType": "signing key"},
        ],
        "formats": ["application/zip" if bundle.is_file() else "application/json"],
        "subjects": [{"subject": "energy consumption"}, {"subject": "workflow run"}],
        **({"rightsList": [{"rightsIdentifier": rights, "rightsIdentifierScheme": "SPDX"}]} if rights else {}),
    }
