"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tao_flows.config import load_config

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMAND = Path(sys.executable).with_name("tao-flows")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_block_measured_without_an_engine_runs() -> None:
    (code,) = [snippet for snippet in snippets("python") if "measure(" in snippet]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value, low, high, quality, cpu_s = done.stdout.split()
    assert quality in {"attributed", "estimated", "measured"}
    assert 0 < float(low) <= float(value) <= float(high)
    assert float(cpu_s) > 0


def test_the_metered_command_runs() -> None:
    (session,) = [text for text in snippets("console") if text.startswith("$ tao-flows meter ")]
    command = shlex.split(session.splitlines()[0].removeprefix("$ "))
    done = subprocess.run([str(COMMAND), *command[1:]], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("python3: ")
    assert "CPU" in done.stderr


def test_the_settings_file_is_understood(tmp_path: Path) -> None:
    signals, text = snippets("toml")
    (tmp_path / "tao-flows.toml").write_text(text, encoding="utf-8")
    config = load_config(env={"HOME": str(tmp_path)}, cwd=tmp_path).config
    assert config.team == "search"
    assert config.budgets["search"].ceiling_j == 2 * 3_600_000
    (tmp_path / "tao-flows.toml").write_text(signals, encoding="utf-8")
    config = load_config(env={"HOME": str(tmp_path)}, cwd=tmp_path).config
    assert config.mode == "enforce"
    assert config.signals["carbon.DE"].provider == "electricitymaps"
    assert config.budgets["nightly"].calendar == "day"


def test_every_command_and_source_it_names_exists() -> None:
    known = subprocess.run([str(COMMAND), "--help"], capture_output=True, text=True, check=True).stdout
    for command in re.findall(r"`tao-flows ([a-z]+)", README):
        assert f"\n  {command} " in known, command
    for source in ("rapl", "nvml", "pyrapl", "estimate"):
        assert f"| `{source}`" in README


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (Path(__file__).parents[2] / link).exists()
