"""Whether anything in a tree of files was put in another's place: one system call, however many files there are."""

from __future__ import annotations

import array
import errno
import os
from collections.abc import Iterable
from fcntl import ioctl
from termios import FIONREAD
from typing import Final

_EVENTS: Final = 0x040 | 0x080 | 0x100 | 0x200 | 0x400 | 0x800
"""IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF and IN_MOVE_SELF (linux/inotify.h)."""
_ONE_SHOT: Final = 0x80000000
"""IN_ONESHOT: a directory speaks once until it is armed again, so that nothing piles up while nobody listens."""
_READ_BYTES: Final = 1 << 16
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR)


class TreeWatch:
    """Hears of everything that comes into, goes out of, or moves with the directories above some files.

    What is written to a file in its place is not heard of: its kept descriptor shows it. Nor is a mount over a
    directory. inotify(7) tells only of what this kernel does, which is all that happens on a local file system.

    Args:
        paths: the files.

    Raises:
        OSError: inotify is not to be had here, or a directory may be passed through and not listed.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        try:
            import ctypes
        except ImportError as error:  # Python built without libffi
            raise OSError(errno.ENOSYS, str(error)) from error
        libc = ctypes.CDLL(None, use_errno=True)
        self._add: Final = libc.inotify_add_watch
        self._errno: Final = ctypes.get_errno
        self._paths = tuple(os.path.abspath(path) for path in paths)
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._waiting: Final = array.array("i", [0])
        try:
            self.arm()
        except OSError:
            self.close()
            raise

    def stirred(self) -> bool:
        """Whether anything was heard since it was armed. True once it is closed."""
        try:
            ioctl(self._fd, FIONREAD, self._waiting, True)
        except (OSError, ValueError):
            return True
        return self._waiting[0] != 0

    def arm(self) -> None:
        """Listens from now on: what is looked at after this stays as it was seen until something has ``stirred``.

        Raises:
            OSError: as at the start.
        """
        while self.stirred():
            os.read(self._fd, _READ_BYTES)
        # Links are looked at where they stand, and followed to where they lead now.
        files = dict.fromkeys(each for path in self._paths for each in (path, os.path.realpath(path)))
        for directory in dict.fromkeys(above for file in files for above in _above(file)):
            added = self._add(self._fd, os.fsencode(directory), _EVENTS | _ONE_SHOT)
            if added < 0 and self._errno() not in _ABSENT:
                raise OSError(self._errno(), "inotify_add_watch", directory)

    def close(self) -> None:
        """Gives back its descriptor. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _above(path: str) -> Iterable[str]:
    while path != (path := os.path.dirname(path)):
        yield path
