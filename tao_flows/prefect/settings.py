"""Prefect's own place for our settings: a ``TaoController`` block."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from tao_flows import runtime
from tao_flows.config import ConfigWatcher
from tao_flows.runtime import Tao, log

BLOCK_ENV = "TAO_FLOWS_PREFECT_BLOCK"
"""Names the block to read settings from; with none named, nothing is asked of the API."""


def watcher() -> ConfigWatcher:
    """Settings as they hold inside Prefect: environment, then the block, then the file."""
    return ConfigWatcher(engine=_block_settings(os.environ.get(BLOCK_ENV, "")), engine_name="prefect block")


def tao_here() -> Tao | None:
    """This process's ``Tao``, with Prefect's settings in it."""
    return runtime.current(watcher, role="engine")


@cache
def _block_settings(name: str) -> Mapping[str, Any]:
    if not name:
        return {}
    try:
        from prefect_blocks import TaoController
        from tao_flows.prefect._compat import impatient

        with impatient():
            # Prefect decides at run time whether this is a coroutine, and its types do not know how to ask.
            block: TaoController = TaoController.load(name, _sync=True)  # type: ignore[call-arg,assignment]
            return block.to_config()
    except Exception as error:  # noqa: BLE001 - the block is one place of several, and the task runs without it
        log.warning("the block %r named by %s could not be read: %s", name, BLOCK_ENV, error)
        return {}
