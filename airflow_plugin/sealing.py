"""Bundles of DAG runs: sealed by the API server, which alone has the signing key and runs no user's code.

A thread of each of its processes looks for runs that have ended; the ledger gives each run to one of them. Where
``dag.test()`` or ``airflow tasks test`` has run the tasks itself, that process seals, and the bundle says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from airflow_plugin.facts import ENGINE

if TYPE_CHECKING:
    from tao_flows.config import TaoConfig
    from tao_flows.governance.sealer import Sealer
    from tao_flows.ledger.base import RunRef
    from tao_flows.ledger.seals import Seal
    from tao_flows.runtime import Tao

log = logging.getLogger("tao_flows.airflow")

LOOK_S: Final = 5.0
"""Seconds between two looks for runs that have ended."""
STOP_S: Final = 5.0
"""How long a server that stops waits for the bundle that is being written; another server goes on with it."""
_App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class SealingMiddleware:
    """Has a server seal for as long as it serves. It takes no part in any request.

    A middleware is what Airflow gives a plugin that hears of the server's own start and end; the plugin itself is
    loaded by commands, too, which must not seal.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Hands everything on."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        sealing = Sealing()
        sealing.start()
        try:
            await self._app(scope, receive, send)
        finally:
            sealing.stop()


class Sealing:
    """The thread that seals."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tao-flows-sealing", daemon=True)
        self._sealer: Sealer | None = None
        self._config: TaoConfig | None = None

    def start(self) -> None:
        """Begins to look."""
        try:
            self._thread.start()
        except RuntimeError:  # no more threads are to be had
            log.warning("this server seals no bundles", exc_info=True)

    def stop(self) -> None:
        """Ends after the run that is being sealed; waits for it ``STOP_S``."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _work(self) -> None:
        while not self._stopping.wait(LOOK_S):
            from airflow_plugin.settings import tao_here  # loads all that meters, which a server's start has no need of

            tao = tao_here()
            if tao is None:
                return  # it was said why
            try:
                if tao.config.mode != "off" and tao.config.bundles is not None:
                    self._look(tao)
            except Exception as ours:  # noqa: BLE001 - the server serves on, and the next look may do better
                tao.incidents.note_error("sealing DAG runs", ours)

    def _look(self, tao: Tao) -> None:
        from tao_flows.governance.sealing import sealer_of
        from tao_flows.ledger.runpages import ref_of

        config = tao.config
        if self._sealer is None or self._config is not config:
            note = tao.incidents.note_error
            self._sealer = sealer_of(config, tao.ledger, "api-server", note=note, clock=tao.clock, engine=ENGINE)
            self._config = config
        for run in self._sealer.look():
            hand_on(tao, config, ref_of(run))


def seal_here(tao: Tao, ref: RunRef) -> None:
    """Seals a run of which this very process has run the tasks, and says so in the bundle. Never raises."""
    from tao_flows.governance.sealing import seal_run

    config = tao.config
    if seal_run(tao, ref, config=config) is not None:
        hand_on(tao, config, ref)


def hand_on(tao: Tao, config: TaoConfig, ref: RunRef) -> None:
    """Packs a sealed bundle for its download, copies it to where settings say, and names it on the run. Never raises."""
    from airflow_plugin.note import bundle_line, put_note
    from tao_flows.ledger.seals import last_seal

    try:
        seal = last_seal(tao.ledger, ref)
        if seal is not None:
            put_note(ref.flow, ref.run_id, bundle_line(seal))
            _pack(config, seal)
    except Exception as ours:  # noqa: BLE001 - the bundle is where it was sealed
        tao.incidents.note_error("showing a bundle", ours, run_id=ref.run_id)


def _pack(config: TaoConfig, seal: Seal) -> None:
    from tao_flows.governance.archive import write_archive

    archive = write_archive(Path(seal.place))
    if config.bundle_storage:
        from tao_flows.governance.storage import store

        store(archive, config.bundle_storage)
