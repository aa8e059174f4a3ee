"""Wake-up descriptors, by which threads of ours and of librdkafka wake a hub."""

from __future__ import annotations

import os
import sys

from greendrop._concurrency import native


class WakeupFd:
    """A file descriptor that is readable while set: an eventfd, else a pipe.

    Both ends are non-blocking: librdkafka writes while it holds a lock, and a full,
    blocking pipe would stop it for ever.
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
            return  # a full pipe is readable; a closed one has no reader

    def clear(self) -> None:
        try:
            os.read(self._read, 4096)
        except OSError:
            return  # it was not set

    def renew(self) -> None:
        """Replace the inherited descriptors under the same numbers, in a forked child.

        The child shares them with its parent: each wake-up that the child reads would
        be lost to the parent for good. Closing the descriptors in the child would
        remove them from an epoll set that both share.
        """
        read, write = self._open()
        os.dup2(read, self._read, inheritable=False)
        if write != read:
            os.dup2(write, self._write, inheritable=False)
            native.close_fd(write)
        native.close_fd(read)

    def close(self) -> None:
        write, self._write = self._write, -1
        # A late `set` must not write to another file that gets the same number.
        read, self._read = self._read, -1
        if read < 0:
            return  # already closed
        native.close_fd(read)
        if write != read:
            native.close_fd(write)
