"""A file descriptor by which a thread, librdkafka's too, wakes a hub."""

from __future__ import annotations

import os
import sys

from greendrop._concurrency import native


class WakeupFd:
    """A file descriptor that is readable while set: an eventfd, else a pipe.

    Non-blocking on both ends: librdkafka writes to it while it holds a lock, and a
    full, blocking pipe would stop it for ever.
    """

    __slots__ = ("_read", "_write")

    def __init__(self) -> None:
        self._read, self._write = self._open()

    @staticmethod
    def _open() -> tuple[int, int]:
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return fd, fd
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        return read, write

    def fileno(self) -> int:
        """The end that becomes readable."""
        return self._read

    @property
    def write_fd(self) -> int:
        """The end that librdkafka writes to."""
        return self._write

    def set(self) -> None:
        try:
            os.write(self._write, (1).to_bytes(8, sys.byteorder))
        except OSError:
            return  # full, which is as good as set; or closed, and nobody listens

    def clear(self) -> None:
        try:
            os.read(self._read, 4096)
        except OSError:
            return  # was not set

    def renew(self) -> None:
        """Put a fresh descriptor behind the same numbers, in a forked child.

        The child shares the parent's: each wake-up that it reads would be lost to the
        parent, for good. Closing it here would take it out of a shared epoll set.
        """
        read, write = self._open()
        os.dup2(read, self._read, inheritable=False)
        if write != read:
            os.dup2(write, self._write, inheritable=False)
            native.close_fd(write)
        native.close_fd(read)

    def close(self) -> None:
        write, self._write = self._write, -1
        # A late `set` must not write into whatever file gets the number next.
        read, self._read = self._read, -1
        if read < 0:
            return  # closed before
        native.close_fd(read)
        if write != read:
            native.close_fd(write)
