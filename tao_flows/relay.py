"""Signals sent to a process that runs a command in its own process group, passed on to the command exactly once.

Ctrl-C, a terminal that hangs up, ``kill %1`` and a killed process group reach the command by themselves; ``kill PID``
reaches us alone and must be passed on. The kernel does not say which it was (a signal to a group looks like one to a
process), so a witness tells: a second child in our group that lets every signal lie, and says when asked which it has.
What the witness got too went to the group, and the command has it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, final

# These cannot be caught, are about the receiver itself, or (SIGCONT) have done their work by arriving.
_NOT_RELAYED: Final = frozenset(
    {
        signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG,
        signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS,
        signal.SIGXCPU, signal.SIGXFSZ,
    }
)  # fmt: skip
_SET_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Ignored by every Python process, and by no other unless it was told to."""
_GROUP_KILL_S: Final = 0.01
"""How long the sender may take from us to the last of a group, where it signals one process after the other."""
_WITNESS_ANSWER_S: Final = 1.0
"""How long to wait for the witness on a busy host, before a signal is passed on that may have gone to the group."""
_QUESTION: Final = b"?"
_NO_SIGNAL: Final = 0
_READ_BYTES: Final = 4096


@final
class SignalRelay:
    """Holds back signals from ``with`` until `watch`, and from then on passes them on within `wait`.

    A child forked in between starts with them held back too, and calls `restore_in_child` and `let_in` before it runs
    its program. Signals that were ignored on entry stay ignored, here and there.

    Raises:
        ValueError: not called from the main thread, where alone Python lets signals be handled.
    """

    def __init__(self) -> None:
        self._child = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> SignalRelay:
        candidates = signal.valid_signals() - _NOT_RELAYED
        # None: a handler that Python cannot put back.
        relayed = {s for s in candidates if signal.getsignal(s) not in (signal.SIG_IGN, None)}
        with contextlib.ExitStack() as undo:
            self._old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, relayed | {signal.SIGCHLD})
            undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, self._old_mask)
            self._inbox, inbox_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, self._inbox)
            undo.callback(os.close, inbox_in)
            # The number of every signal that has a handler is written there, whichever thread got it.
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(inbox_in, warn_on_full_buffer=False))
            # SIGCHLD is taken even when ignored: an ignored one leaves no status to wait for.
            for number in (*relayed, signal.SIGCHLD):
                self._old[number] = signal.signal(number, _note)
                undo.callback(signal.signal, number, self._old[number])
            self._ask, self._answers = _start_witness(relayed, undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._undo.close()

    def restore_in_child(self) -> None:
        """Gives a forked child the dispositions that its program would have had without us."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_IGN if handler == signal.SIG_IGN else signal.SIG_DFL)
        for number in _SET_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)

    def let_in(self) -> None:
        """Lets through the signals held back so far: in the child just before it runs its program, and here."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)

    def watch(self, child: int) -> None:
        """Lets signals in, to be passed on to ``child``, which has not been waited for."""
        self._child = child
        self.let_in()

    def wait(self, timeout_s: float) -> None:
        """Returns when a signal has come and been dealt with, a child's end or stop included, or after the time."""
        if not _readable(self._inbox, timeout_s):
            return
        numbers = [number for number in _drain(self._inbox) if number != signal.SIGCHLD]
        if numbers:
            time.sleep(_GROUP_KILL_S)
            group_has = self._ask_witness()
            child_has = group_has if _in_our_group(self._child) else b""
            for number in numbers:
                if number not in child_has:
                    _send(self._child, number)

    def _ask_witness(self) -> bytes:
        _drain(self._answers)
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._ask, _QUESTION)
            if _readable(self._answers, _WITNESS_ANSWER_S):
                return _drain(self._answers)
        return b""


def stop_like(child: int) -> None:
    """Stops this process as ``child`` has been stopped by its terminal, and wakes ``child`` when woken itself.

    The shell watches us and not the command: it takes its terminal back only once we have stopped.
    """
    os.kill(os.getpid(), signal.SIGSTOP)
    _send(child, signal.SIGCONT)


def _note(number: int, frame: FrameType | None) -> Any:
    """Does nothing: that there is a handler makes the number appear in the inbox."""


def _send(pid: int, number: int) -> None:
    # It may have ended, or have become another user's: then the sender could not have reached it either.
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _in_our_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except OSError:
        return True  # it has ended: there is nothing to pass on to


def _start_witness(signals: Iterable[int], undo: contextlib.ExitStack) -> tuple[int, int]:
    questions, ask = os.pipe2(os.O_CLOEXEC)
    answers, answer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    undo.callback(os.close, ask)
    undo.callback(os.close, answers)
    try:
        pid = os.fork()
        if pid == 0:
            _witness(signals, questions, answer)
    finally:
        os.close(questions)
        os.close(answer)
    undo.callback(os.waitpid, pid, 0)
    undo.callback(os.kill, pid, signal.SIGKILL)
    return ask, answers


def _witness(signals: Iterable[int], questions: int, answer: int) -> NoReturn:
    try:
        # Whoever reads what the command writes must see its end when the command ends, not when the witness does.
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd not in {questions, answer}:
                with contextlib.suppress(OSError):
                    os.close(fd)
        while os.read(questions, len(_QUESTION)):  # nothing is left to read when we are gone
            numbers = [_NO_SIGNAL]
            while (info := signal.sigtimedwait(signals, 0)) is not None:
                numbers.append(info.si_signo)
            os.write(answer, bytes(numbers))
    finally:
        os._exit(0)


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1e3))


def _drain(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return b""
