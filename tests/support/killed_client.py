"""A client of a vLLM server that is to be killed in the middle of an update.

    python -m tests.support.killed_client URL MODE CALL SECONDS FIELD=VALUE...

It updates the server to what the fields name. From the pause on, it prints CALL before it makes that call, and waits so many seconds;
with 0 it is killed while the server works.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from ckptdiff.engines.vllm_client import Client, HttpServer


class Telling(HttpServer):
    """A server that says what it is asked."""

    def __init__(self, url: str, at: str, seconds: float) -> None:
        super().__init__(url)
        self._at, self._seconds, self._is_paused = at, seconds, False

    def _request(self, path: str, fields: dict[str, Any]) -> Any:
        name = path.partition("?")[0] + (f" {fields['update_info']['action']}" if "update_info" in fields else "")
        self._is_paused |= name == "pause"
        if self._is_paused and name == self._at:
            print(name, flush=True)
            time.sleep(self._seconds)
        return super()._request(path, fields)


if __name__ == "__main__":
    address, way, call, wait, *rows = sys.argv[1:]
    Client(Telling(address, call, float(wait)), mode=way).update(**dict(row.split("=", 1) for row in rows))  # type: ignore[arg-type]
    time.sleep(600)
