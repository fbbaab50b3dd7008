"""A flow that is killed while a task runs: it says when, and waits."""

from __future__ import annotations

import time

from tao_flows import tao_flow, tao_task


@tao_task
def done() -> None: ...


@tao_task
def endless() -> None:
    print("endless has started", flush=True)
    time.sleep(600)


@tao_flow
def main() -> None:
    done()
    endless()


if __name__ == "__main__":
    main()
