"""Stands for what runs containers: each command becomes a process of this host, with the environment it is given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any


class Containers:
    """Starts commands as a container's entry point would, in any number, and ends them with itself.

    Args:
        folder: for what they write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], ended: Callable[[int], Any]
    ) -> subprocess.Popen[bytes]:
        """Starts one; ``ended`` is told its exit code."""
        binaries = str(Path(sys.executable).parent)
        here = {**os.environ, **env, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        with self.log(name).open("wb") as out:
            process = subprocess.Popen(
                command, env=here, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        self._started.append(process)
        Thread(target=lambda: ended(process.wait()), daemon=True).start()
        return process

    def log(self, name: str) -> Path:
        """Where a container's output is."""
        return self._folder / f"{name}.container.log"

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
