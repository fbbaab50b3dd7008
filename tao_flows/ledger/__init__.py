"""Where records are kept."""

from __future__ import annotations

import re

from tao_flows.errors import ConfigError
from tao_flows.ledger.base import Ledger

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://)?")
_FORMS = "give sqlite:////absolute/path, sqlite:///relative/path, or a plain path"


def open_ledger(url: str) -> Ledger:
    """The ledger that ``url`` names: ``sqlite:////abs/path``, ``sqlite:///relative/path`` or a plain path.

    Nothing is opened or created until the first read or write.

    Raises:
        ConfigError: LEDGER_URL, the scheme is unknown or there is no path.
    """
    from tao_flows.ledger.sqlite import SqliteLedger

    scheme = _SCHEME.match(url)
    path = url.removeprefix("sqlite:///")
    if not path.strip() or path == ":memory:" or (scheme and not url.startswith("sqlite:///")):
        # Only the scheme is repeated: the rest of a URL can hold a password.
        shown = f"{scheme[1]}:..." if scheme else url
        raise ConfigError("LEDGER_URL", f"{shown!r} does not name a ledger this version can open", _FORMS)
    return SqliteLedger(path)
