"""``tao-flows seal`` and the bundle that ``tao-flows meter`` leaves, as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_run import REF, RUN, documents_in, record_run

from tao_flows.governance.keys import VerifyKey, new_keys
from tao_flows.governance.verify import verify
from tao_flows.ledger import open_ledger


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    new_keys(tmp_path / "keys")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TAO_FLOWS_")}
    return kept | {
        "HOME": str(tmp_path),
        "TAO_FLOWS_LEDGER": str(tmp_path / "ledger.db"),
        "TAO_FLOWS_AGENT": "off",
        "TAO_FLOWS_BUNDLES": str(tmp_path / "bundles"),
        "TAO_FLOWS_SIGNING_KEY": str(tmp_path / "keys" / "signing.key"),
    }


def tao_flows(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tao_flows.cli import main; main()", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120, cwd=env["HOME"])


def is_sound(bundle: Path, env: dict[str, str]) -> bool:
    said = verify(bundle, [VerifyKey.load(Path(env["HOME"], "keys", "signing.pub"))])
    return said.ok and said.complete


def recorded(env: dict[str, str], *runs: Any) -> None:
    with closing(open_ledger(env["TAO_FLOWS_LEDGER"])) as ledger:
        for run in runs:
            record_run(ledger, run=run)


def test_a_metered_command_leaves_its_bundle_and_is_not_told_of_the_key(env: dict[str, str], tmp_path: Path) -> None:
    done = tao_flows("meter", "--label", "job", "--", "sh", "-c", "env; exit 3", env=env)
    assert done.returncode == 3
    assert "TAO_FLOWS_LEDGER" in done.stdout
    assert "TAO_FLOWS_SIGNING_KEY" not in done.stdout
    assert "TAO_FLOWS_BUNDLES" not in done.stdout
    (bundle,) = tmp_path.glob("bundles/[!.]*")
    assert str(bundle) in done.stderr
    assert is_sound(bundle, env)
    found = documents_in(bundle)
    assert found["run.json"]["run"]["state"] == "failed"
    assert len(found["environment.json"]["environments"]) == 1


def test_a_bundle_that_cannot_be_written_is_told_and_costs_the_command_nothing(env: dict[str, str]) -> None:
    done = tao_flows("meter", "--", "true", env=env | {"TAO_FLOWS_SIGNING_KEY": "/nowhere/signing.key"})
    assert done.returncode == 0
    assert "/nowhere/signing.key" in done.stderr


def test_a_run_is_sealed_by_its_name(env: dict[str, str]) -> None:
    recorded(env, RUN)
    done = tao_flows("seal", "amber-fox", "--json", env=env)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["run"]["run_id"], said["complete"], said["signer"], said["revision"]) == (REF.run_id, True, "seal", 1)
    assert is_sound(Path(said["bundle"]), env)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), "BAD_USAGE"), (("latest", "--follow"), "BAD_USAGE"), (("nobody",), "RUN_NOT_FOUND")],
)
def test_bad_usage_is_one_line(env: dict[str, str], arguments: tuple[str, ...], code: str) -> None:
    recorded(env, RUN)
    done = tao_flows("seal", *arguments, env=env)
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr
    assert done.stdout == ""


def test_following_seals_what_ends_until_it_is_told_to_stop(env: dict[str, str]) -> None:
    recorded(env, RUN)
    command = [
        sys.executable,
        "-c",
        "from tao_flows.cli import main; main()",
        "seal",
        "--follow",
        "--every",
        "0.2s",
        "--json",
    ]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline())
        recorded(env, replace(RUN, run_id="second", name="second"))
        second = json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
        process.stdout.close()
    assert status == 0
    assert [first["run"]["run_id"], second["run"]["run_id"]] == [REF.run_id, "second"]
    assert is_sound(Path(second["bundle"]), env)
