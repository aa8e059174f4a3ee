"""Wake-up descriptors, by which threads of ours and of librdkafka wake a hub."""

from __future__ import annotations

import os
import sys

from greendrop._concurrency import native


class WakeupFd:
    """A file descriptor that is readable while set: an eventfd, else a pipe.

    To clear it, read from it.

    Both ends are non-blocking: librdkafka writes while it holds a lock, and a full,
    blocking pipe would stop it for ever.
    """

    __slots__ = ("read_fd", "write_fd")

    def __init__(self) -> None:
        #: The end that becomes readable, and the one that librdkafka writes to. Both
        #: are -1 once closed.
        self.read_fd, self.write_fd = self._open()

    @staticmethod
    def _open() -> tuple[int, int]:
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return fd, fd
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        return read, write

    def set(self) -> None:
        try:
            os.write(self.write_fd, (1).to_bytes(8, sys.byteorder))
        except OSError:
            return  # a full pipe is readable; a closed one has no reader

    def renew(self) -> None:
        """Replace the inherited descriptors under the same numbers, in a forked child.

        The child shares them with its parent: each wake-up that the child reads would
        be lost to the parent for good. Closing the descriptors in the child would
        remove them from an epoll set that both share.
        """
        read, write = self._open()
        os.dup2(read, self.read_fd, inheritable=False)
        if write != read:
            os.dup2(write, self.write_fd, inheritable=False)
            native.close_fd(write)
        native.close_fd(read)

    def close(self) -> None:
        write, self.write_fd = self.write_fd, -1
        # A late `set` must not write to another file that gets the same number.
        read, self.read_fd = self.read_fd, -1
        if read < 0:
            return  # already closed
        native.close_fd(read)
        if write != read:
            native.close_fd(write)
