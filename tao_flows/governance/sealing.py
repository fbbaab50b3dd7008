"""Sealers as settings ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tao_flows.clock import Clock
from tao_flows.config import TaoConfig
from tao_flows.errors import ConfigError, TaoError
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.provider import ProviderInputs, load_provider_inputs
from tao_flows.governance.sealer import Note, Sealer
from tao_flows.governance.writer import Sealed
from tao_flows.ledger.base import Ledger, RunRef

if TYPE_CHECKING:
    from tao_flows.runtime import Tao


def sealer_of(
    config: TaoConfig,
    ledger: Ledger,
    signer: str,
    *,
    note: Note,
    clock: Clock | None = None,
    engine: str = "",
    key: SigningKey | None = None,
) -> Sealer:
    """The sealer that settings ask for. Provider inputs that cannot be read are noted, and left out.

    Args:
        config: the settings: ``bundles``, ``signing_key``, ``provider_inputs``, ``retention``.
        ledger: where the records are.
        signer: what kind of process this is.
        note: told of what failed.
        clock: the time of reading and sealing.
        engine: whose runs of the settings' namespace ``look`` looks at; by default all of the ledger.
        key: signs, where settings name no file.

    Raises:
        ConfigError: NO_BUNDLES, no directory is set; or the key's file is open to others or holds no key.
        InputError: the key's file cannot be read.
    """
    if config.bundles is None:
        raise ConfigError("NO_BUNDLES", "no directory for bundles is set", "set TAO_FLOWS_BUNDLES to a directory")
    if config.signing_key is not None:
        key = SigningKey.load(config.signing_key)
    provider: ProviderInputs | None = None
    if config.provider_inputs is not None:
        try:
            provider = load_provider_inputs(config.provider_inputs)
        except TaoError as error:
            note("reading provider inputs", error)
    return Sealer(
        ledger,
        config.bundles,
        key,
        signer,
        clock=clock,
        note=note,
        provider=provider,
        retention=config.retention,
        is_ours=lambda run: not engine or (run.engine, run.namespace) == (engine, config.namespace),
    )


def seal_run(
    tao: Tao, run_ref: RunRef, *, signer: str = "in-process", config: TaoConfig | None = None
) -> Sealed | None:
    """Seals a run now, where settings name a directory for bundles. Never raises: what fails is noted.

    Args:
        tao: this process's; what its ledger has not written yet is written first.
        run_ref: the run.
        signer: what kind of process this is.
        config: the settings, where this process no longer has them in its environment.
    """
    config = config or tao.config
    if config.bundles is None:
        return None
    try:
        tao.ledger.flush()
        sealer = sealer_of(config, tao.ledger, signer, note=tao.incidents.note_error, clock=tao.clock)
        return sealer.seal(run_ref)
    except Exception as error:  # noqa: BLE001 - the run has ended as it has ended
        tao.incidents.note_error(f"sealing run {run_ref.run_id}", error)
        return None
