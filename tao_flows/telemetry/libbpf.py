"""A compiled BPF object in the kernel, by way of the system's libbpf: what ebpf.py needs of it, and no more.

Function names, structures and flags are those of libbpf 1.x (``bpf/libbpf.h``, ``bpf/bpf.h``).
"""

from __future__ import annotations

import contextlib
import ctypes as c
import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

LIBRARY: Final = "libbpf.so.1"
BPF_ANY: Final = 0
BPF_EXIST: Final = 2
_RUN_ON_CPU: Final = 1 << 0
_LEVEL_WARNING: Final = 0
_MESSAGE_BYTES: Final = 4096
_PRINT: Final = c.CFUNCTYPE(c.c_int, c.c_int, c.c_char_p, c.c_void_p)
_VOID: Final = c.c_void_p
_SIGNATURES: Final[Mapping[str, tuple[Any, tuple[Any, ...]]]] = {
    "bpf_link__destroy": (c.c_int, (_VOID,)),
    "bpf_map__fd": (c.c_int, (_VOID,)),
    "bpf_map__set_max_entries": (c.c_int, (_VOID, c.c_uint32)),
    "bpf_map_delete_elem": (c.c_int, (c.c_int, _VOID)),
    "bpf_map_lookup_elem": (c.c_int, (c.c_int, _VOID, _VOID)),
    "bpf_map_update_elem": (c.c_int, (c.c_int, _VOID, _VOID, c.c_uint64)),
    "bpf_object__close": (None, (_VOID,)),
    "bpf_object__find_map_by_name": (_VOID, (_VOID, c.c_char_p)),
    "bpf_object__find_program_by_name": (_VOID, (_VOID, c.c_char_p)),
    "bpf_object__load": (c.c_int, (_VOID,)),
    "bpf_object__next_program": (_VOID, (_VOID, _VOID)),
    "bpf_object__open_file": (_VOID, (c.c_char_p, _VOID)),
    "bpf_prog_test_run_opts": (c.c_int, (c.c_int, _VOID)),
    "bpf_program__attach": (_VOID, (_VOID,)),
    "bpf_program__fd": (c.c_int, (_VOID,)),
    "bpf_program__section_name": (c.c_char_p, (_VOID,)),
    "libbpf_num_possible_cpus": (c.c_int, ()),
    "libbpf_set_print": (_VOID, (_VOID,)),
}


class BpfError(OSError):
    """The kernel or libbpf refused; ``said`` is libbpf's own first warning, or empty."""

    said: str = ""


class _RunOptions(c.Structure):
    # struct bpf_test_run_opts
    _fields_ = (
        ("sz", c.c_size_t),
        ("data_in", c.c_void_p),
        ("data_out", c.c_void_p),
        ("data_size_in", c.c_uint32),
        ("data_size_out", c.c_uint32),
        ("ctx_in", c.c_void_p),
        ("ctx_out", c.c_void_p),
        ("ctx_size_in", c.c_uint32),
        ("ctx_size_out", c.c_uint32),
        ("retval", c.c_uint32),
        ("repeat", c.c_int),
        ("duration", c.c_uint32),
        ("flags", c.c_uint32),
        ("cpu", c.c_uint32),
        ("batch_size", c.c_uint32),
    )


class BpfObject:
    """An object file loaded into the kernel, with every program that names its event attached.

    It goes when this is closed, or when the process ends however it ends.

    Args:
        path: the compiled object.
        sizes: by map, how many entries it has; called with the number of CPUs that there can be.
        library: the name under which the dynamic linker finds libbpf.

    Raises:
        FileNotFoundError: there is no such library.
        BpfError: it cannot be loaded or attached.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], library: str = LIBRARY) -> None:
        self._lib = _library(library)
        self._object: int | None = None
        self._links: list[int] = []
        with _warnings(self._lib) as said:
            try:
                self._open(path, sizes)
            except BpfError as error:
                error.said = said[0] if said else ""
                self.close()
                raise

    def table(self, name: str, value: type[c.Structure]) -> Table:
        """The hash map of that name, whose values have that type."""
        return Table(self._lib, self._map_fd(name), value)

    def memory(self, name: str, entries: int, entry_bytes: int) -> mmap.mmap:
        """The memory of the map of that name, made with BPF_F_MMAPABLE and shared with the kernel."""
        return mmap.mmap(self._map_fd(name), entries * entry_bytes)

    def program_fd(self, name: str) -> int:
        """The program's file descriptor, which belongs to this object."""
        return int(self._lib.bpf_program__fd(self._lib.bpf_object__find_program_by_name(self._object, name.encode())))

    def run_on(self, cpu: int, program_fd: int) -> bool:
        """Runs a raw tracepoint program once on that CPU; False when that CPU is offline.

        Raises:
            BpfError: it cannot be run.
        """
        options = _RunOptions(sz=c.sizeof(_RunOptions), flags=_RUN_ON_CPU, cpu=cpu)
        error = -self._lib.bpf_prog_test_run_opts(program_fd, c.byref(options))
        if error not in {0, errno.ENXIO}:
            raise BpfError(error, os.strerror(error))
        return not error

    def close(self) -> None:
        """Detaches and unloads. May be called twice."""
        links, self._links = self._links, []
        for link in links:
            self._lib.bpf_link__destroy(link)
        opened, self._object = self._object, None
        if opened is not None:
            self._lib.bpf_object__close(opened)

    def _map_fd(self, name: str) -> int:
        return int(self._lib.bpf_map__fd(self._lib.bpf_object__find_map_by_name(self._object, name.encode())))

    def _open(self, path: Path, sizes: Mapping[str, int]) -> None:
        lib = self._lib
        self._object = _checked(lib.bpf_object__open_file(os.fsencode(path), None))
        for name, entries in sizes.items():
            found = _checked(lib.bpf_object__find_map_by_name(self._object, name.encode()))
            _succeeded(lib.bpf_map__set_max_entries(found, entries))
        _succeeded(lib.bpf_object__load(self._object))
        program = None
        while program := lib.bpf_object__next_program(self._object, program):
            # A section that names no event holds a program for ``run_on``.
            if b"/" in lib.bpf_program__section_name(program):
                self._links.append(_checked(lib.bpf_program__attach(program)))


class Table:
    """A hash map in the kernel whose keys are 32-bit numbers."""

    def __init__(self, lib: Any, fd: int, value: type[c.Structure]) -> None:
        self._lib, self._fd, self._value = lib, fd, value

    def get(self, key: int) -> Any | None:
        """The value, or None."""
        value = self._value()
        missing = self._lib.bpf_map_lookup_elem(self._fd, c.byref(c.c_uint32(key)), c.byref(value))
        return None if missing else value

    def put(self, key: int, value: c.Structure, flags: int = BPF_ANY) -> bool:
        """Sets it; False when the map is full, or with BPF_EXIST when the key is not there."""
        return not self._lib.bpf_map_update_elem(self._fd, c.byref(c.c_uint32(key)), c.byref(value), flags)

    def delete(self, key: int) -> None:
        """Takes it out if it is there."""
        self._lib.bpf_map_delete_elem(self._fd, c.byref(c.c_uint32(key)))


def possible_cpus(library: str = LIBRARY) -> int:
    """How many CPUs there can be: their numbers lie below it.

    Raises:
        FileNotFoundError: there is no such library.
        BpfError: the kernel does not say.
    """
    number = int(_library(library).libbpf_num_possible_cpus())
    _succeeded(number)
    return number


def _library(name: str) -> Any:
    try:
        lib = c.CDLL(name, use_errno=True)
        for function, (result, arguments) in _SIGNATURES.items():
            found = getattr(lib, function)
            found.restype, found.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise FileNotFoundError(errno.ENOENT, str(error), name) from None
    return lib


@contextlib.contextmanager
def _warnings(lib: Any) -> Iterator[list[str]]:
    """What libbpf warns of meanwhile, instead of on standard error."""
    said: list[str] = []
    format_message = c.CDLL(None).vsnprintf

    def keep(level: int, form: bytes, arguments: int) -> int:
        if level == _LEVEL_WARNING:
            text = c.create_string_buffer(_MESSAGE_BYTES)
            # A va_list arrives as a pointer on x86-64 and on aarch64, and goes on as one.
            format_message(text, c.c_size_t(len(text)), form, c.c_void_p(arguments))
            said.append(text.value.decode("utf-8", "replace").removeprefix("libbpf: ").strip())
        return 0

    callback = _PRINT(keep)
    before = lib.libbpf_set_print(c.cast(callback, c.c_void_p))
    try:
        yield said
    finally:
        lib.libbpf_set_print(before)


def _checked(pointer: int | None) -> int:
    if not pointer:
        raise BpfError(c.get_errno(), os.strerror(c.get_errno()))
    return pointer


def _succeeded(result: int) -> None:
    if result < 0:
        raise BpfError(-result, os.strerror(-result))
