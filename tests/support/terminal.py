"""Commands of ckptdiff as a person sees them: on a pseudo terminal of a width."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

MARK = "=== next ==="
CHILD = f"""
import json, sys
from ckptdiff.cli.main import main
for arguments in json.loads(sys.argv[1]):
    main(arguments, standalone_mode=False)
    print({MARK!r}, flush=True)
"""
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def shown(commands: Sequence[Sequence[object]], width: int, folder: Path) -> list[str]:
    """What commands print, one after the other in one process, on a terminal of a width; their standard error is a pipe."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm"}
    words = json.dumps([[str(word) for word in command] for command in commands])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, words], stdin=writer, stdout=writer, stderr=subprocess.PIPE, env=environment, cwd=folder
    )
    os.close(writer)
    received = b""
    while True:
        try:
            part = os.read(reader, 1 << 16)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        received += part
    os.close(reader)
    _, errors = child.communicate()
    assert child.returncode == 0, errors.decode()
    text = ESCAPES.sub("", received.decode().replace("\r\n", "\n"))
    parts = text.split(f"{MARK}\n")
    assert len(parts) == len(commands) + 1 and not parts[-1], text
    return parts[:-1]
