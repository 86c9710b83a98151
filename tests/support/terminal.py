# SPDX-License-Identifier: Apache-2.0
"""A pseudo-terminal, for what looks different on one."""

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
    """What was written to the terminal; complete once the block of `terminal` has ended."""

    def __init__(self) -> None:
        self.text = ""

    @property
    def lines(self) -> list[str]:
        """Without styles."""
        return _STYLE.sub("", self.text).replace("\r\n", "\n").splitlines()


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[int, Screen]]:
    """The descriptor to write to, which the caller's copies of must be closed by the end of the block."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    screen, chunks = Screen(), []

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO, once nobody has the other end open
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
