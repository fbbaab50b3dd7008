"""Writes bundles in processes of their own and kills each at a moment of its own.

Usage: ``killed_bundles.py ROOT KEY COUNT SEED``. Once it is warm, a bundle costs a fork and what is left of it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from bundle_maker import make_bundle

from tao_flows.governance.keys import SigningKey

ENTRIES = 60
EVERY = 7


def write(root: Path, name: str, key: SigningKey) -> None:
    make_bundle(root, key, name, count=ENTRIES, every=EVERY)


def main(root: Path, key: SigningKey, count: int, seed: int) -> None:
    generator = random.Random(seed)
    longest_s = []
    for number in range(3):
        begun_s = time.monotonic()
        write(root, f"warm-{number}", key)
        longest_s.append(time.monotonic() - begun_s)
    for number in range(count):
        kill_after_s = generator.random() * min(longest_s) * 1.5
        child = os.fork()
        if child == 0:
            write(root, f"run-{number}", key)
            os._exit(0)
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), SigningKey.load(Path(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4]))
