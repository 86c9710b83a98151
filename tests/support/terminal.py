# SPDX-License-Identifier: Apache-2.0
"""A pseudo-terminal, for output that depends on one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """The text that was written to the terminal; complete only after the block of `terminal`."""

    def __init__(self) -> None:
        self.text = ""

    @property
    def lines(self) -> list[str]:
        """The lines, without styles."""
        return _STYLE.sub("", self.text).replace("\r\n", "\n").splitlines()


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[int, Screen]]:
    """The descriptor to write to. The caller must close its copies of it before the block ends."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    screen, chunks = Screen(), []

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO, when the other end is closed everywhere
            while chunk := os.read(master, 1 << 16):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield slave, screen
    finally:
        os.close(slave)
        reader.join(60)
        os.close(master)
        screen.text = b"".join(chunks).decode()
