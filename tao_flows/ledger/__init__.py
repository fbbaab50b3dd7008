"""Where records are kept."""

from __future__ import annotations

import re

from tao_flows.errors import ConfigError
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.tomlfile import CONNECTION

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://)?")
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_NO_ENGINE = "set TAO_FLOWS_LEDGER to the URL of that ledger here, or give --engine where there is that option"
_FORMS = "give sqlite:////absolute/path, sqlite:///relative/path, a plain path, or postgresql://user@host/database"


def open_ledger(url: str) -> RelationalLedger:
    """The ledger that ``url`` names.

    ``sqlite:////abs/path``, ``sqlite:///relative/path`` or a plain path; ``postgresql://``, ``postgres://`` or
    ``postgresql+psycopg://``. To be written to alone: ``spool:///absolute/path``, or an ingest's ``https://host/path``
    (``http://`` on this host). Nothing is opened or created until the first read or write.

    Raises:
        ConfigError: LEDGER_URL, the scheme is unknown or there is no path; LEDGER_CONNECTION, it is a connection that
            an engine keeps, and whoever asks has no engine.
        MissingExtraError: what PostgreSQL needs is not installed.
    """
    if url.startswith(CONNECTION):
        raise ConfigError("LEDGER_CONNECTION", f"{url} is a connection that only its engine can look up", _NO_ENGINE)
    if url.startswith(("https://", "http://")):
        from tao_flows.ledger.remote import RemoteLedger

        return RemoteLedger(url)
    if url.startswith("spool:///"):
        from tao_flows.ledger.writeonly import SpoolLedger

        return SpoolLedger(url.removeprefix("spool://"))
    scheme = _SCHEME.match(url)
    if scheme and scheme[1].lower() in _POSTGRES and scheme[0].endswith("//"):
        from tao_flows.ledger.sql import PostgresLedger

        return PostgresLedger(url)
    from tao_flows.ledger.sqlite import SqliteLedger

    path = url.removeprefix("sqlite:///")
    if not path.strip() or path == ":memory:" or (scheme and not url.startswith("sqlite:///")):
        # Only the scheme is repeated: the rest of a URL can hold a password.
        shown = f"{scheme[1]}:..." if scheme else url
        raise ConfigError("LEDGER_URL", f"{shown!r} does not name a ledger this version can open", _FORMS)
    return SqliteLedger(path)
