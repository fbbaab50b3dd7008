"""What looks like a secret is in no byte of any file of a bundle, wherever it came in."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_run import REF, RUN, T0, S, account, decision, task

from tao_flows.config import ConfigWatcher, load_config
from tao_flows.figures import Quality
from tao_flows.governance.environment import captured, shown_setting
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.sealer import Sealer
from tao_flows.ledger import open_ledger
from tao_flows.records import Incident, Who
from tao_flows.runtime import build

SECRET = "hunter2-Pa55"
TOKEN = "sk-live-Zx81Qw7Lm29KdTy0VbNc45Re"
PLANTED = [
    f"--password {SECRET}",
    f"--api-key={SECRET}",
    f"https://ada:{SECRET}@example.org/data?sig={SECRET}&token={SECRET}",
    f"postgresql://ada:{SECRET}@db/energy",
    f"Server=db;Password={SECRET};Database=energy",
    f"export DB_PASSWORD={SECRET}",
    f"Authorization: Bearer {TOKEN}",
    f"curl -u ada:{SECRET} http://example.org",
    TOKEN,
    "id AKIAIOSFODNN7EXAMPLE",
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----",
]


def all_bytes(bundle: Path) -> bytes:
    """Every byte of every file, and what is signed inside the envelope."""
    found = b"".join(path.read_bytes() for path in sorted(bundle.iterdir()))
    envelope = json.loads((bundle / "attestation.dsse.json").read_bytes())
    return found + base64.b64decode(envelope["payload"])


def planted(text: str) -> list[Any]:
    """Records of a run, with a secret wherever a text comes from people."""
    who = Who(team=text, tags=(text, f"token:{SECRET}", f"url={text}"))
    measured = task().measurement
    assert measured is not None
    noted = replace(
        measured, label=text, events=(text,), model=text, baseline=text,
        energy=replace(measured.energy, sources=(text,), unknown_parts=(text,), quality=Quality.ESTIMATED),
    )  # fmt: skip
    request = {
        "task": {"key": text, "home_pool": "home"},
        "parameters": {"password": SECRET, "dsn": SECRET, "urls": [text, {"api_key": [SECRET], "plain": text}]},
        f"key {text}": text,
    }
    return [
        replace(task(), who=who, measurement=noted, budget=text, task_label=text, budgets=(text,)),
        decision(reason=text, request=request, answer={"why": text, "violations": [{"id": text, "value": text}]}),
        Incident("SOURCE_GAP", text, text, T0, 1, REF.run_id, text),
        replace(RUN, who=who, name=text),
        replace(account(), events=(text,)),
    ]


def test_planted_secrets_are_in_no_byte_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    settings = tmp_path / "tao-flows.toml"
    settings.write_text(f'tags = ["password={SECRET}", "{TOKEN}"]\nowner = "https://ada:{SECRET}@example.org/"\n')
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(settings))
    monkeypatch.setenv("TAO_FLOWS_LEDGER", f"sqlite:///{path}")
    monkeypatch.setenv("TAO_FLOWS_SIGNING_KEY", str(tmp_path / f"{TOKEN}.key"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("PLAIN_LOOKING", TOKEN)
    monkeypatch.setattr(sys, "argv", ["job.py", "--password", SECRET])
    tao = build(ConfigWatcher())
    with closing(open_ledger(str(path))) as ledger:
        for text in PLANTED:
            for record in planted(text):
                match record:
                    case Incident():
                        ledger.put_incident(record)
                    case _ if hasattr(record, "window"):
                        ledger.put_account(REF, replace(record, window=text))
                    case _ if hasattr(record, "decided_wall_ns"):
                        ledger.put_decision(replace(record, decided_wall_ns=T0 + PLANTED.index(text)))
                    case _ if hasattr(record, "measurement"):
                        ledger.put_task(replace(record, key=replace(record.key, instance=text)))
                    case _:
                        ledger.put_run(record)
        # The process of the run tells what it runs in.
        told = captured(tao.watcher.get(), tao.discovery, T0)
        ledger.put_environment(replace(told, segment=RUN.segment))
        key = SigningKey.generate()
        sealed = Sealer(ledger, tmp_path / "bundles", key, "seal").seal(REF)
        said = all_bytes(sealed.path)
    for secret in (SECRET, TOKEN, SECRET[:8], TOKEN[8:], "AKIAIOSFODNN7EXAMPLE", "MC4CAQAwBQYDK2Vw"):
        assert secret.encode() not in said
    assert b"[redacted]" in said
    assert REF.run_id.encode() in said
    assert b"packages" in said


def test_the_signing_keys_place_is_masked_where_settings_are_shown(tmp_path: Path) -> None:
    resolved = load_config(arguments={"signing_key": tmp_path / "k", "ledger": "postgresql://a:b%40@h/d"}, env={})
    assert shown_setting("signing_key", resolved)["value"] == "[redacted]"
    assert shown_setting("ledger", resolved) == {
        "name": "ledger", "value": "postgresql://a:***@h/d", "origin": "argument",
    }  # fmt: skip
    assert shown_setting("signing_key", load_config(env={"HOME": str(tmp_path)}))["value"] is None


def test_names_of_runs_are_kept_whole(tmp_path: Path) -> None:
    with closing(open_ledger(str(tmp_path / "ledger.db"))) as ledger:
        run = replace(RUN, run_id="backfill__2026-11-23T00:00:00.1+00:00_aB3dE5gH7jK9mN1pQ3rS5")
        ledger.put_run(run)
        bundle = Sealer(ledger, tmp_path / "b", None, "seal").seal(replace(REF, run_id=run.run_id)).path
        assert json.loads((bundle / "run.json").read_bytes())["run"]["run_id"] == run.run_id
        assert run.ended_wall_ns == T0 + 60 * S
