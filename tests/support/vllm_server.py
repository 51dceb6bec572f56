"""A server on loopback that speaks vLLM's routes of weight transfer over real HTTP, for a torch model and an :class:`Updater`.

It is as strict as vLLM 0.32 about sessions and pauses, and has no generation.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ckptdiff.engines import record
from ckptdiff.engines.updater import Updater, Wanted
from ckptdiff.engines.ways import Move
from ckptdiff.errors import CkptdiffError


class Loopback:
    """The state of the server.

    Args:
        model: the served model, with a ``load_weights``.
        base: the checkpoint that it was loaded from.
    """

    def __init__(self, model: Any, base: str) -> None:
        self.model, self._base = model, base
        self.updater: Updater | None = None
        self.open, self.paused, self.version, self.log = False, False, "default", list[str]()
        self.url = ""

    def answer(self, name: str, query: dict[str, list[str]], body: dict[str, Any]) -> Any:
        """What a route gives; raises CkptdiffError or RuntimeError."""
        self.log.append(f"{name}{' ' + body['update_info']['action'] if 'update_info' in body else ''}")
        if name == "collective_rpc":
            return {"results": [getattr(self, body["method"])()]}
        if name == "weight_info":
            return {"weight_version": self.version}
        return getattr(self, f"_{name}")(query, **body)

    def ckptdiff_state(self) -> dict[str, Any]:
        assert self.updater is not None
        return self.updater.state()

    def ckptdiff_close(self) -> None:
        self.open = False

    def _init_weight_transfer_engine(self, query: Any, init_info: dict[str, Any]) -> None:
        assert init_info == {"mode": "move"}
        if self.updater is None:
            self.updater = Updater(Move(self.model, record(self.model, self._base, threads=1), self._base), 1)

    def _pause(self, query: dict[str, list[str]]) -> None:
        assert query["mode"] in (["keep"], ["wait"], ["abort"]) and not self.paused
        self.paused = True

    def _resume(self, query: Any) -> None:
        self.paused = False

    def _reset_prefix_cache(self, query: Any) -> dict[str, bool]:
        return {"success": True}

    def _start_weight_update(self, query: Any) -> None:
        if self.open:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        self.open = True

    def _update_weights(self, query: Any, update_info: dict[str, Any]) -> None:
        if not self.open or self.updater is None:
            raise RuntimeError("start_weight_update must be called before update_weights")
        action = update_info.pop("action")
        assert self.paused == (action != "stage")
        try:
            if action == "stage":
                self.updater.stage(Wanted(**update_info))
            elif action == "apply":
                self.updater.apply()
            else:
                self.updater.undo(**update_info)
        except BaseException:
            self.open = False
            raise

    def _finish_weight_update(self, query: Any, weight_version: str | None = None) -> None:
        if not self.open:
            raise RuntimeError("finish_weight_update called without a matching start_weight_update")
        self.open, self.version = False, weight_version or self.version

    def _update_weight_version(self, query: Any, new_version: str) -> None:
        self.version = new_version


@contextmanager
def serving(model: Any, base: str) -> Iterator[Loopback]:
    """A server of a model, as long as the context lasts."""
    state = Loopback(model, base)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
            try:
                status, told = 200, state.answer(parts.path.strip("/"), parse_qs(parts.query), body)
            except (CkptdiffError, RuntimeError) as error:
                status, told = 500, {"error": {"message": str(error)}}
            sent = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
