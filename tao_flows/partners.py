"""Other organisations as the settings name them: where their documents are, and how their API is reached.

What a partner says of itself is in its signed documents (``federation``). What is here is ours: an address or a key is
never taken from a partner's document.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tao_flows.errors import InputError, SourceError
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import parse_duration_s

ORG: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""The name of an organisation: as a host's name, for it stands in the names of pools, files and tags."""
AT: Final = "@"
"""Between the name of a partner's pool and the organisation's: ``green@org-b``. No pool of ours has it in its name."""
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_LONGEST_KEY: Final = 65_536


@dataclass(frozen=True, slots=True)
class PartnerSpec:
    """One ``[partners.ORG]`` table."""

    org: str
    source: str = ""
    """Where its signed documents are: a directory, or an ``https://`` address."""
    api_url: str = ""
    """The API that work for it goes to: Prefect's, such as ``https://prefect.example/api``, or Airflow's web address."""
    user: str = ""
    """Who we are there, where the API asks for a user and a password."""
    key_env: str = ""
    key_file: str = ""
    key_conn: str = ""
    """Names what an engine keeps: a Secret block of Prefect's, a connection of Airflow's."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts that documents may be fetched from although their addresses are private; of these, loopback by http too."""
    give_up_after_s: float = 14_400.0
    """A run that it may have, and of which it says nothing for so long, is given up: it ends as crashed."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"partner {self.org}"

    def key(self, env: Mapping[str, str] = os.environ) -> str:
        """The API key, or the password; empty where none is named. Kept by an engine it is the engine's to find.

        Raises:
            SourceError: PARTNER_KEY, it is named and not to be had.
        """
        if self.key_file:
            try:
                with open(self.key_file, encoding="utf-8") as file:
                    return file.read(_LONGEST_KEY).strip()
            except (OSError, UnicodeDecodeError) as error:
                remedy = "make it readable to this user, with the key alone in it"
                raise SourceError("PARTNER_KEY", f"{self.name}: {self.key_file}: {error}", remedy) from None
        if self.key_env and not env.get(self.key_env, "").strip():
            remedy = "set it to the key, or name a key_file"
            raise SourceError("PARTNER_KEY", f"{self.name}: the variable {self.key_env} is not set", remedy)
        return env.get(self.key_env, "").strip()


def pool_at(pool_id: str, org: str) -> str:
    """The id of a partner's pool among ours."""
    return f"{pool_id}{AT}{org}"


def org_name(value: object) -> str:
    """``value`` as the name of an organisation.

    Raises:
        InputError: BAD_PARTNER, it is none.
    """
    if isinstance(value, str) and ORG.fullmatch(value):
        return value
    remedy = "write it as a host's name: lower-case letters, digits, dots and dashes, 63 at most"
    raise InputError("BAD_PARTNER", f"{str(value)[:80]!r} is no name of an organisation", remedy)


def parse_partners(value: object, base: Path) -> dict[str, PartnerSpec]:
    """The partners of the settings, by organisation.

    Raises:
        InputError: BAD_PARTNER, a table has an unknown key or a wrong value.
    """
    if not isinstance(value, Mapping):
        raise InputError("BAD_PARTNER", f"{value!r} is not a table", "write [partners.ORG] with source = ...")
    return {org_name(org): _partner(org_name(org), table, base) for org, table in value.items()}


def _partner(org: str, table: object, base: Path) -> PartnerSpec:
    if isinstance(table, PartnerSpec):
        return table
    if not isinstance(table, Mapping):
        raise InputError("BAD_PARTNER", f"partner {org}: {table!r} is not a table", f"write [partners.{org}]")
    given: dict[str, Any] = {}
    for name, value in table.items():
        if name not in _FIELDS:
            raise InputError("BAD_PARTNER", f"partner {org}: unknown key {name!r}", did_you_mean(str(name), _FIELDS))
        try:
            given[_ATTRIBUTES.get(str(name), str(name))] = _FIELDS[str(name)](value, base)
        except InputError as error:
            raise InputError("BAD_PARTNER", f"partner {org}: {name}: {error.summary}", error.remedy) from None
    if sum(name in given for name in ("key_env", "key_file", "key_conn")) > 1:
        raise InputError("BAD_PARTNER", f"partner {org}: more than one key is named", "keep one of them")
    return PartnerSpec(org, **given)


def _text(value: object, _base: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError("BAD_PARTNER", f"{value!r} is not a text", 'write it in quotes: "..."')
    return value.strip()


def _path(value: object, base: Path) -> str:
    return str(base / Path(_text(value, base)).expanduser())


def _source(value: object, base: Path) -> str:
    text = _text(value, base)
    return address(text) if "://" in text else _path(text, base)


def _address(value: object, base: Path) -> str:
    return address(_text(value, base))


def _hosts(value: object, base: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError("BAD_PARTNER", f"{value!r} is not a list of hosts", 'write it as ["127.0.0.1"]')
    return tuple(_text(item, base).lower() for item in value)


def _duration(value: object, _base: Path) -> float:
    return parse_duration_s(value)


def address(url: str) -> str:
    """``url`` without a slash at its end: an http or https address with nothing but a host, a port and a path.

    Raises:
        InputError: BAD_PARTNER, it is none. It is not repeated: there may be a password in it.
    """
    remedy = 'give "https://HOST", without a user, a query or a fragment'
    try:
        where = urlsplit(url)
        usable = where.hostname and where.port != 0 and where.username is None and not where.query + where.fragment
    except ValueError:
        where, usable = urlsplit(""), None
    if not usable or where.scheme not in {"http", "https"} or not re.fullmatch(r"[!-~]+", url):
        raise InputError("BAD_PARTNER", "that is no address of a server", remedy)
    if where.scheme == "http" and where.hostname not in LOOPBACK:
        raise InputError("BAD_PARTNER", f"http to {where.hostname} is not encrypted", 'use "https://"')
    return url.rstrip("/")


_FIELDS: Final[Mapping[str, Callable[[object, Path], object]]] = {
    "source": _source,
    "api_url": _address,
    "user": _text,
    "key_env": _text,
    "key_file": _path,
    "key_conn": _text,
    "allow_hosts": _hosts,
    "give_up_after": _duration,
}
_ATTRIBUTES: Final = {"give_up_after": "give_up_after_s"}
