"""Prefect's own place for our settings: a ``TaoController`` block, and those that it names."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from tao_flows import runtime
from tao_flows.config import ConfigWatcher
from tao_flows.errors import ConfigError
from tao_flows.prefect._compat import impatient, settings_here
from tao_flows.prefect.connections import PrefectConnections
from tao_flows.runtime import Tao, log

BLOCK_ENV = "TAO_FLOWS_PREFECT_BLOCK"
"""Names the block to read settings from; with none named, nothing is asked of the API."""
REFRESH_S: Final = 60.0
"""A process that goes on asking for settings has the block read again this often, in the background."""

CONNECTIONS: Final = PrefectConnections()
"""This process's."""


class BlockSettings:
    """What a ``TaoController`` block sets, as it was last read: the first time at once, then in the background.

    In a flow run that ends within ``REFRESH_S`` the block and each that it names are read once.

    Args:
        name: the block's; empty for none.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: set[str] = set()
        self._refreshing = threading.Lock()
        self._read_s = time.monotonic()
        self._settings: Mapping[str, Any] = _read(name, self._told)[0] if name else {}

    def __call__(self) -> Mapping[str, Any]:
        """The settings. Never waits, and never raises."""
        if self._name and time.monotonic() - self._read_s >= REFRESH_S and self._refreshing.acquire(blocking=False):
            self._read_s = time.monotonic()
            try:
                here = settings_here()
                thread = threading.Thread(target=self._refresh, args=(here,), name="tao-flows-block", daemon=True)
                thread.start()
            except RuntimeError:  # no more threads are to be had
                self._refreshing.release()
        return self._settings

    def _refresh(self, here: Any) -> None:
        try:
            with here:
                settings, whole = _read(self._name, self._told)
            if whole:  # else it stays as it was
                self._settings = settings
        finally:
            self._refreshing.release()


def watcher() -> ConfigWatcher:
    """Settings as they hold inside Prefect: environment, then the block, then the file."""
    return ConfigWatcher(engine=BlockSettings(os.environ.get(BLOCK_ENV, "")), engine_name="prefect block")


def tao_here() -> Tao | None:
    """This process's ``Tao``, with Prefect's settings in it."""
    return runtime.current(watcher, role="engine", connections=CONNECTIONS)


def _read(name: str, told: set[str]) -> tuple[Mapping[str, Any], bool]:
    """What the block and those that it names set, and whether the API answered to the end.

    Args:
        name: the block's.
        told: what was said before and is not said again.
    """
    settings: Mapping[str, Any] = {}
    what = f"the block {name!r} named by {BLOCK_ENV}"
    try:
        from prefect_blocks import TaoController

        with impatient():
            # Prefect decides at run time whether this is a coroutine, and its types do not know how to ask.
            block: TaoController = TaoController.load(name, _sync=True)  # type: ignore[call-arg,assignment]
            CONNECTIONS.keep(block)
            settings = block.joined(())
            parts: list[Any] = []
            for kind, part_name in block.named():
                what = f"the block {kind.get_block_type_slug()}/{part_name} named by the block {name!r}"
                try:
                    part: Any = kind.load(part_name, _sync=True)  # type: ignore[call-arg]
                    settings = block.joined([*parts, part])
                except (ValueError, RuntimeError, ConfigError) as error:  # it is not there, or is wrong
                    _tell(what, error, told)
                    continue
                parts.append(part)
                CONNECTIONS.keep(part)
    except Exception as error:  # noqa: BLE001 - the block is one place of several, and the task runs without it
        _tell(what, error, told)
        return settings, False
    return settings, True


def _tell(what: str, error: Exception, told: set[str]) -> None:
    said = f"{what} could not be read: {error}"
    if said not in told:
        log.warning("%s", said)
    told.add(said)
