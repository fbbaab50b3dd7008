"""Values that are worked out once, also where a process forks while a thread is about one."""

from __future__ import annotations

import os
import threading
import time

from tao_flows.lazily import lazily


class Holder:
    def __init__(self, inside: threading.Event | None = None, go_on: threading.Event | None = None) -> None:
        self.inside, self.go_on, self.times = inside, go_on, 0

    @lazily
    def value(self) -> int:
        """It."""
        self.times += 1
        if self.inside is not None and self.go_on is not None:
            self.inside.set()
            self.go_on.wait()
        return 42


def test_a_value_is_worked_out_when_it_is_asked_for_and_kept() -> None:
    holder = Holder()
    assert holder.times == 0
    assert [holder.value, holder.value, holder.times] == [42, 42, 1]
    assert Holder.value.__doc__ == "It."


def test_a_child_that_was_forked_while_a_thread_was_about_one_works_out_its_own() -> None:
    inside, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: Holder(inside, go_on).value)
    thread.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        os._exit(Holder().value)
    go_on.set()
    thread.join()
    give_up_s = time.monotonic() + 10
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        assert time.monotonic() < give_up_s, os.kill(child, 9)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 42
