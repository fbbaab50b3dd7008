"""A run's bundle as one file. Where it lies the ledger says, and the settings which folder it must be in."""

from __future__ import annotations

from pathlib import Path

from airflow_plugin.web.reading import Sources
from tao_flows.errors import InputError
from tao_flows.governance.archive import write_archive
from tao_flows.governance.layout import ARCHIVE_SUFFIX, bundle_name
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.seals import last_seal

_NONE = "NO_BUNDLE"


def bundle_file(sources: Sources, ref: RunRef) -> Path:
    """The archive of the last bundle of a run.

    Nothing of the request is part of the path: its names only pick a row of the ledger.

    Raises:
        LedgerError: the ledger cannot be read.
        InputError: NO_BUNDLE, the run was not sealed, or its bundle is not in the folder of this server's settings.
    """
    seal, root = last_seal(sources.ledger, ref), sources.config.bundles
    if seal is None:
        raise InputError(
            _NONE, "this run has no bundle yet", "a run is sealed after its end, where settings ask for it"
        )
    place = Path(seal.place)
    archive = place if place.suffix == ARCHIVE_SUFFIX else place.with_name(place.name + ARCHIVE_SUFFIX)
    remedy = f"it was sealed as {place} by the {seal.signer}"
    # A row of the ledger is no permission: what it names must be this very run's, and here.
    is_own = archive.name.startswith(bundle_name(ref))
    if root is None or not is_own or archive.resolve().parent != root.resolve():
        raise InputError(_NONE, "the bundle is not in the folder of bundles of this API server", remedy)
    if not archive.is_file():
        if not place.is_dir():
            raise InputError(_NONE, "the bundle is not on this host any more", remedy)
        write_archive(place)
    return archive
