"""Airflow's connections, as settings name them: ``ledger = conn:NAME``, and ``key = "conn:NAME"`` of a signal.

Nothing is looked up at import. The scheduler, the API server and the command line read Airflow's secrets backends and
database; a task's process and a triggerer ask the API server through their supervisor, as any task of Airflow does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

from airflow_plugin import _compat
from tao_flows.errors import ConfigError, LedgerError, SourceError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.signals.keys import Credentials
from tao_flows.signals.spec import SignalSpec

AGAIN_S: Final = 60.0
"""What could not be had through the supervisor is not asked for again before: each time, its client tries for a while."""
_REMEDY: Final = "create it in Admin > Connections, or with `airflow connections add`"


@dataclass(frozen=True, slots=True)
class Found:
    """What a connection says."""

    name: str
    host: str = ""
    port: int | None = None
    schema: str = ""
    login: str = ""
    password: str = field(default="", repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, connection: Any) -> Found:
        """What one of Airflow's connections says, whichever of its classes it is of."""
        texts = {name: getattr(connection, name) or "" for name in ("host", "schema", "login", "password")}
        return cls(connection.conn_id, port=connection.port or None, extra=dict(connection.extra_dejson), **texts)

    def ledger(self) -> RelationalLedger:
        """Opens the ledger that it names.

        A host with ``https://`` is an ingest and the password its token; one that begins with ``/`` or names its
        scheme is the path or URL of a ledger without credentials; any other is a PostgreSQL server, and the extra's
        fields are parameters of its driver, such as ``sslmode``.

        Raises:
            ConfigError: CONNECTION_INCOMPLETE, or as ``open_ledger``.
            MissingExtraError: what the ledger needs is not installed.
        """
        if self.host.startswith(("https://", "http://")):
            from tao_flows.ledger.remote import RemoteLedger

            return RemoteLedger(self._address(), token=lambda: self.password)
        if self.host.startswith("/") or "://" in self.host:
            return open_ledger(self.host)
        if not (self.host and self.schema):
            summary = f"the connection {self.name} names no ledger"
            raise ConfigError("CONNECTION_INCOMPLETE", summary, "give its host, and the schema of a PostgreSQL ledger")
        user = quote(self.login, safe="") + (f":{quote(self.password, safe='')}" if self.password else "")
        where = self.host + (f":{self.port}" if self.port else "")
        query = f"?{urlencode(self.extra)}" if self.extra else ""
        return open_ledger(f"postgresql://{f'{user}@' if user else ''}{where}/{quote(self.schema, safe='')}{query}")

    def _address(self) -> str:
        return (
            self.host.rstrip("/")
            + (f":{self.port}" if self.port else "")
            + (f"/{self.schema.strip('/')}" if self.schema else "")
        )

    def credentials(self, spec: SignalSpec) -> Credentials:
        """The key of a signal's provider: the password, else the extra's field of the provider's name."""
        return Credentials(self.password or str(self.extra.get(spec.provider, "")), spec.user or self.login)


class AirflowConnections:
    """Looks connections up when they are needed. Safe to share between threads."""

    def __init__(self) -> None:
        self._found: dict[str, Found] = {}
        """Asked of the supervisor, and kept for the process's life."""
        self._failed: dict[str, tuple[float, LedgerError]] = {}

    def ledger(self, name: str) -> RelationalLedger:
        """Opens the ledger of a connection.

        Raises:
            LedgerError: CONNECTION_UNKNOWN, it cannot be looked up.
            ConfigError: it names no ledger.
            MissingExtraError: what the ledger needs is not installed.
        """
        return self.find(name).ledger()

    def credentials(self, spec: SignalSpec) -> Credentials | None:
        """The key of a signal; None where it names no connection.

        Raises:
            SourceError: SIGNAL_KEY, the connection cannot be looked up.
        """
        if not spec.key_conn:
            return None
        try:
            return self.find(spec.key_conn).credentials(spec)
        except LedgerError as error:
            raise SourceError("SIGNAL_KEY", f"{spec.name}: {error.summary}", error.remedy) from error

    def find(self, name: str) -> Found:
        """A connection. In the scheduler and the API server it is looked up every time.

        Raises:
            LedgerError: CONNECTION_UNKNOWN: there is none, it cannot be had, or not by this thread.
        """
        channel = _compat.supervisor_channel()
        if channel is None:
            return self._look_up(name)
        if name in self._found:
            return self._found[name]
        asked_s, failure = self._failed.get(name, (-AGAIN_S, None))
        if failure is not None and time.monotonic() - asked_s < AGAIN_S:
            raise LedgerError(failure.code, failure.summary, failure.remedy)
        if not _compat.may_ask_supervisor(channel):
            remedy = "it is asked for by the task's main thread"
            raise LedgerError("CONNECTION_UNKNOWN", f"the connection {name} is not known to this thread yet", remedy)
        try:
            return self._found.setdefault(name, self._look_up(name))
        except LedgerError as error:
            self._failed[name] = time.monotonic(), error
            raise

    def fetch(self, names: Iterable[str]) -> None:
        """Looks up what threads of this process will ask for and may not look up themselves. Never raises."""
        channel = _compat.supervisor_channel()
        if channel is None or _compat.channel_is_shared(channel):
            return
        for name in names:
            try:
                self.find(name)
            except LedgerError:  # whoever asks for it says so
                continue

    def _look_up(self, name: str) -> Found:
        try:
            return Found.of(_compat.connection(name))
        except Exception as error:
            # An unknown connection and an API server that does not answer look alike from here.
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise LedgerError("CONNECTION_UNKNOWN", f"the connection {name} cannot be had: {said}", _REMEDY) from error
