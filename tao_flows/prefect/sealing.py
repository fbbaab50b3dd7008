"""Bundles of flow runs: sealed by a worker or a controller of ours, with a key that no flow run's process is given.

A flow that was started by hand, where the settings name a place for bundles, seals its own at its end, and the bundle
says so: ``in-process``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from tao_flows.config import TaoConfig, env_name
from tao_flows.errors import LedgerError
from tao_flows.governance.archive import write_archive
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.sealer import Sealer
from tao_flows.governance.sealing import seal_run, sealer_of
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.runpages import ref_of
from tao_flows.ledger.seals import Seal, last_seal
from tao_flows.ledger.totals import stored_run
from tao_flows.prefect._compat import impatient
from tao_flows.prefect.moves import in_thread
from tao_flows.prefect.sealed import copied, show
from tao_flows.prefect.settings import tao_here
from tao_flows.records import RunRecord
from tao_flows.report.wanted import report_wanted
from tao_flows.runtime import Tao
from tao_flows.telemetry.procfs import is_alive

SEALED_BY_ENV: Final = "TAO_FLOWS_SEALED_BY"
"""Says in a flow run's process that its bundle is sealed outside of it, and by what."""
KEY_BLOCK_ENV: Final = "TAO_FLOWS_PREFECT_SIGNING_KEY"
"""Names the Signing Key block to sign with, where no file is named."""
KEPT_BACK: Final = (env_name("signing_key"), env_name("bundles"), KEY_BLOCK_ENV)
"""Variables that no flow run's process is given."""
LOOK_S: Final = 5.0
"""Seconds between two looks for runs that have ended."""
SEAL_S: Final = 20.0
"""How long the end of a flow waits for its own bundle."""
_GOOD_STATES: Final = frozenset({"completed", "cached"})


class FlowSealing:
    """Seals flow runs once they have ended, in a thread, and shows each bundle on its run.

    Args:
        tao: this process's.
        signer: what kind of process this is: ``worker`` or ``controller``.
        config: the settings as they were before variables were kept back.
    """

    def __init__(self, tao: Tao, signer: str, config: TaoConfig) -> None:
        self._tao, self._signer, self._config = tao, signer, config
        self._key_block = os.environ.get(KEY_BLOCK_ENV, "")
        self._sealer: Sealer | None = None
        self.has_ended = False
        """Set when a process that a run was started in is gone."""

    async def keep_looking(self) -> None:
        """Looks every ``LOOK_S``, until it is cancelled."""
        while True:
            await in_thread(self.look)
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Seals what has ended and is whole by now. Never raises."""
        try:
            self._sealer = self._sealer or self._opened()
            if self.has_ended:
                self.has_ended = False
                # One that was killed has left no end.
                self._tao.ledger.reconcile(partial(is_alive, proc_root=self._config.proc_root))
            for run in self._sealer.look():
                show_bundle(self._tao, self._config, run)
        except Exception as ours:  # noqa: BLE001 - the next look may do better
            self._tao.incidents.note_error("sealing flow runs", ours)

    def _opened(self) -> Sealer:
        """The sealer.

        Raises:
            TaoError: as ``sealer_of``.
            Exception: the block of the key cannot be read.
        """
        key = block_key(self._key_block) if self._key_block and self._config.signing_key is None else None
        return sealer_of(
            self._config,
            self._tao.ledger,
            self._signer,
            note=self._tao.incidents.note_error,
            clock=self._tao.clock,
            engine="prefect",
            key=key,
        )


def block_key(name: str) -> SigningKey:
    """The key of a Signing Key block.

    Raises:
        ValueError: there is none of that name, or it cannot be had now.
    """
    from prefect_blocks import SigningKey as Block

    with impatient():
        # Prefect decides at run time whether this is a coroutine, and its types do not know how to ask.
        block: Block = Block.load(name, _sync=True)  # type: ignore[call-arg,assignment]
    return block.to_key()


def sealing_worker() -> FlowSealing | None:
    """What seals in a worker, which forgets the key's name and the place of bundles; None where no bundles are asked for.

    A worker hands its own environment to what it starts.
    """
    tao = tao_here()
    sealing = None if tao is None else _sealing(tao, "worker")
    for name in KEPT_BACK:
        os.environ.pop(name, None)
    return sealing


def sealing_controller() -> FlowSealing | None:
    """What seals in a controller; None where no bundles are asked for."""
    tao = tao_here()
    return None if tao is None else _sealing(tao, "controller")


def _sealing(tao: Tao, signer: str) -> FlowSealing | None:
    config = tao.config
    return None if config.bundles is None else FlowSealing(tao, signer, config)


def keep_back(configuration: Any, sealed_by: str = "") -> None:
    """Takes the signing key and the place of bundles out of what a worker is about to start.

    Args:
        configuration: a worker's, of one flow run, with its environment and, for a job, its manifest.
        sealed_by: what the process is told instead; empty where nobody seals.
    """
    told = {SEALED_BY_ENV: sealed_by} if sealed_by else {}
    env = getattr(configuration, "env", None)
    if isinstance(env, Mapping):
        configuration.env = {name: value for name, value in env.items() if name not in KEPT_BACK} | told
    manifest = getattr(configuration, "job_manifest", None) or {}
    spec = manifest.get("spec", {}).get("template", {}).get("spec", {})
    for container in [*spec.get("initContainers", ()), *spec.get("containers", ())]:
        if isinstance(container.get("env"), list):
            others = [each for each in container["env"] if each.get("name") not in {*KEPT_BACK, *told}]
            container["env"] = [*others, *({"name": name, "value": value} for name, value in told.items())]


def seal_here(tao: Tao, ref: RunRef) -> None:
    """Seals a run in its own process, where settings ask for bundles and nobody outside seals. Never raises.

    Waits ``SEAL_S`` at most; what takes longer is left unfinished when the process ends.
    """
    config = tao.config
    if config.bundles is None or os.environ.get(SEALED_BY_ENV):
        return
    thread = threading.Thread(target=_seal, args=(tao, config, ref), name="tao-flows-seal", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no more threads are to be had
        tao.incidents.note_error("sealing a flow run", error, run_id=ref.run_id)
        return
    thread.join(SEAL_S)
    if thread.is_alive():
        tao.incidents.note(
            "BUNDLE_LATE",
            f"the bundle was not sealed within {SEAL_S:g} s of the flow's end",
            remedy=f"tao-flows seal {ref.run_id}",
            run_id=ref.run_id,
        )


def _seal(tao: Tao, config: TaoConfig, ref: RunRef) -> None:
    if seal_run(tao, ref, config=config) is None:
        return
    try:
        run = stored_run(tao.ledger, ref)
    except LedgerError as error:
        tao.incidents.note_error("showing a bundle", error, run_id=ref.run_id)
        return
    if run is not None:
        show_bundle(tao, config, run)


def show_bundle(tao: Tao, config: TaoConfig, run: RunRecord) -> None:
    """Copies a sealed bundle to where settings say, and shows it on its run. Never raises."""
    ref = ref_of(run)
    try:
        seal = last_seal(tao.ledger, ref)
        if seal is None:
            return
        copy = _copy(tao, config, ref, seal)
        if report_wanted(config.report_artifacts, run.run_id, good=run.state in _GOOD_STATES):
            show(seal, ref, copy)
    except Exception as ours:  # noqa: BLE001 - the bundle is where it was sealed
        tao.incidents.note_error("showing a bundle", ours, run_id=run.run_id)


def _copy(tao: Tao, config: TaoConfig, ref: RunRef, seal: Seal) -> str:
    """Where a copy of the bundle is by now; empty for nowhere."""
    if not config.bundle_storage:
        return ""
    try:
        return copied(write_archive(Path(seal.place)), config.bundle_storage)
    except Exception as ours:  # noqa: BLE001 - the bundle is where it was sealed
        tao.incidents.note_error("copying a bundle", ours, run_id=ref.run_id)
        return ""
