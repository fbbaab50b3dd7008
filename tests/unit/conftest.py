"""What several of these tests are given."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_agent import agent

__all__ = ["agent"]

FAKE_NVML = Path(__file__).parents[1] / "fakes" / "nvml" / "fake_nvml.c"


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds the fake driver's library, with some functions left out if asked to, and gives its directory."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the fake libnvidia-ml.so.1 cannot be built")
    built: dict[tuple[str, ...], Path] = {}

    def directory_with(*macros: str) -> Path:
        if macros not in built:
            directory = tmp_path_factory.mktemp("nvml")
            library = directory / "libnvidia-ml.so.1"
            flags = [f"-D{macro}" for macro in macros]
            subprocess.run(["gcc", "-shared", "-fPIC", *flags, "-o", library, FAKE_NVML], check=True)
            built[macros] = directory
        return built[macros]

    return directory_with
