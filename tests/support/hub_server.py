"""A Hugging Face Hub on 127.0.0.1 for the released client: repos, commits, LFS and Xet transfers, ranges, faults on demand."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.support.hub_routes import Handler
from tests.support.hub_state import TOKEN, Hub


@contextmanager
def running(folder: Path, xet: bool = False) -> Iterator[Hub]:
    """A Hub that answers until the block ends; Xet's store lies in ``folder``."""
    cas = folder / "cas" if xet else None
    if cas:
        shutil.rmtree(cas, ignore_errors=True)
        cas.mkdir(parents=True)
    hub = Hub(cas)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """What a client's process needs to talk to this Hub, with a cache of its own."""
    made = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    made |= {"HF_TOKEN": token} if token else {}
    return made | ({} if hub.cas else {"HF_HUB_DISABLE_XET": "1"})
