"""Drives a vLLM that has the weight-transfer engine ``ckptdiff``: a server over HTTP, or an ``LLM`` in this process.

An update is staged while the engine serves; then come pause, apply, finish, the reset of the prefix cache, and resume. If it fails on any
rank, it is taken back on those where it did not, and the engine goes on with the old weights.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ckptdiff.chain.subscriber import Subscriber
from ckptdiff.errors import BaseMismatchError, CheckpointError, CkptdiffError, IntegrityError, StoreError, cut

POLL = 0.02
"""Seconds between two looks at whether an update is staged."""


class Server(Protocol):
    """A running vLLM."""

    def call(self, name: str, **fields: Any) -> Any:
        """Call a route of vLLM's API of weight transfer, or the method of ``LLM`` that it stands for.

        Raises:
            CheckpointError: it failed. StoreError: the server cannot be reached.
        """

    def states(self) -> list[dict[str, Any]]:
        """The state (:meth:`ckptdiff.engines.updater.Updater.state`) of each rank."""

    def close(self) -> None:
        """Finish an update that was left open, on each rank that has one."""

    def pause(self, mode: str) -> None:
        """Stop the scheduling of requests; ``mode`` as of vLLM's ``/pause``, which resets the prefix cache unless it is ``keep``."""

    def reset(self) -> None:
        """Reset the prefix cache."""

    def resume(self) -> None:
        """Go on."""


class HttpServer:
    """A server over HTTP, started with ``VLLM_SERVER_DEV_MODE=1``.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        timeout: seconds that a request may take.
    """

    def __init__(self, url: str, timeout: float = 600) -> None:
        self.url, self._timeout = url.rstrip("/"), timeout

    def call(self, name: str, **fields: Any) -> Any:
        """See :class:`Server`."""
        return self._request(name, fields)

    def _request(self, path: str, fields: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(fields).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            raise CheckpointError(f"{self.url}/{path}: {_message(error)}") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.url}/{path}: no answer ({getattr(error, 'reason', error)}): is the server running there?") from None

    def states(self) -> list[dict[str, Any]]:
        """See :class:`Server`."""
        return list(self._request("collective_rpc", {"method": "ckptdiff_state"})["results"])

    def close(self) -> None:
        """See :class:`Server`."""
        self._request("collective_rpc", {"method": "ckptdiff_close"})

    def pause(self, mode: str) -> None:
        """See :class:`Server`."""
        self._request(f"pause?{urllib.parse.urlencode({'mode': mode})}", {})

    def reset(self) -> None:
        """See :class:`Server`; raises IntegrityError if the prefix cache is still held."""
        if not self._request("reset_prefix_cache?reset_running_requests=true", {})["success"]:
            raise IntegrityError(f"{self.url}: its prefix cache could not be reset: it still holds what the old weights gave")

    def resume(self) -> None:
        """See :class:`Server`."""
        self._request("resume", {})


class Offline:
    """An ``LLM`` of vLLM in this process, which serves nothing between two calls."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def call(self, name: str, **fields: Any) -> Any:
        """See :class:`Server`."""
        method = getattr(self._llm, name)
        try:
            return method(fields) if name in ("init_weight_transfer_engine", "update_weights") else method(**fields)
        except CkptdiffError:
            raise
        except Exception as error:
            raise CheckpointError(f"vLLM: {name}: {type(error).__name__}: {error}") from error

    def states(self) -> list[dict[str, Any]]:
        """See :class:`Server`."""
        return list(self._llm.collective_rpc("ckptdiff_state"))

    def close(self) -> None:
        """See :class:`Server`."""
        self._llm.collective_rpc("ckptdiff_close")

    def pause(self, mode: str) -> None:
        """See :class:`Server`."""
        self._llm.reset_prefix_cache()

    def reset(self) -> None:
        """See :class:`Server`."""
        self._llm.reset_prefix_cache()

    def resume(self) -> None:
        """See :class:`Server`."""


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update did."""

    identity: str
    """Identity of what is served now, in hexadecimal."""
    step: int | None
    """Its number in the chain."""
    nbytes: int
    """Bytes of the patches."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: ``stage``, while the engine served; ``pause``, ``apply`` and ``resume``; ``paused``: these together."""

    @property
    def weight_version(self) -> str:
        """What vLLM calls the weights now: the step, if there is one, and the identity."""
        return weight_version(self.step, self.identity)


def weight_version(step: int | None, identity: str) -> str:
    """vLLM's ``weight_version`` of a state."""
    return identity if step is None else f"{step}-{identity}"


class Client:
    """Updates one engine.

    Args:
        server: the engine.
        pause_mode: what becomes of requests in flight, as of vLLM's ``/pause``: ``wait`` for them, ``abort`` or ``keep`` them.
        init: fields of the engine's init info (``mode``, ``base``, ``digests``, ``threads``).

    Raises:
        CheckpointError: the engine refuses, for example because the model was not loaded from ``base``. StoreError: there is no answer.
    """

    def __init__(self, server: Server, *, pause_mode: str = "wait", **init: Any) -> None:
        self.server, self.pause_mode = server, pause_mode
        server.call("init_weight_transfer_engine", init_info={key: value for key, value in init.items() if value is not None})

    def state(self) -> dict[str, Any]:
        """The engine's state; raises IntegrityError if its ranks serve different weights."""
        states = self.server.states()
        if len({state["identity"] for state in states}) != 1:
            raise IntegrityError(
                f"the ranks serve different weights ({', '.join(str(state['identity']) for state in states)}): an update was killed; "
                "call undo with one of these that all were at, or load the engine anew"
            )
        return states[0]

    def update(self, *, patch: str | None = None, chain: str | None = None, step: int | None = None, base: bool = False) -> Updated:
        """Update the engine to a patch's target, a step of a chain (None: the last), or its base.

        Raises:
            BaseMismatchError: the engine is there already (kind ``already_target``), or the way there does not start from what it serves.
            CheckpointError: another error of the engine, with its text. After an error it serves what it did; or it stays paused, if the
                update could not be taken back.
        """
        begun, before = time.perf_counter(), self.state()["identity"]
        prepared = self.stage(patch=patch, chain=chain, step=step, base=base)
        staged = time.perf_counter()
        self.pause()
        paused = time.perf_counter()
        try:
            self.apply(prepared)
        except BaseException:
            self._session(action="undo", to=before)  # if that fails too, the engine stays paused: nobody knows what it would serve
            self.server.resume()
            raise
        applied = time.perf_counter()
        self.server.resume()
        end = time.perf_counter()
        timings = {"stage": staged - begun, "pause": paused - staged, "apply": applied - paused, "resume": end - applied}
        return Updated(prepared["identity"], prepared["step"], prepared["nbytes"], {**timings, "paused": end - staged})

    def stage(self, **wanted: Any) -> dict[str, Any]:
        """Let all ranks prepare an update, and open vLLM's session in which it will be applied; raises as :meth:`update`.

        Returns:
            ``identity``, ``step`` and ``nbytes`` of what was prepared.
        """
        self._session(action="stage", **wanted)
        prepared = self._staged()
        self.server.call("start_weight_update")  # beside the engine: in the pause each request counts
        return prepared

    def pause(self) -> None:
        """Pause the engine and reset its prefix cache; after an error it goes on."""
        try:
            self.server.pause(self.pause_mode)
            if self.pause_mode == "keep":
                self.server.reset()
        except BaseException:
            self.server.close()
            self.server.resume()
            raise

    def apply(self, prepared: dict[str, Any]) -> None:
        """Apply what :meth:`stage` prepared to the paused engine; after an error each rank has either state."""
        self.server.call("update_weights", update_info={"action": "apply"})
        self.server.call("finish_weight_update", weight_version=weight_version(prepared["step"], prepared["identity"]))

    def undo(self, to: str) -> None:
        """Take the last update back on every rank that is not in the state ``to`` (an identity, in hexadecimal)."""
        self.pause()
        try:
            self._session(action="undo", to=to)
        finally:
            self.server.resume()

    def follow(
        self, chain: str, *, interval: float = 1.0, until: Callable[[Updated | None], bool] = lambda updated: False
    ) -> Iterator[Updated]:
        """Take each new step of a chain when it is there.

        Args:
            chain: its path or URL, for the engine as well as here.
            interval: seconds between two looks at the chain.
            until: asked after each look, with the update that it led to, whether to end.
        """
        self.recover()
        watcher = Subscriber(chain)
        while True:
            latest, updated = watcher.latest(), None
            if latest is not None and latest.identity != self.state()["identity"]:
                updated = self.update(chain=chain, step=latest.step)
                yield updated
            if until(updated):
                return
            if updated is None:
                time.sleep(interval)

    def _session(self, **update_info: Any) -> None:
        """One session of vLLM: start, update, finish. One that a killed client left open is finished first."""
        fields = {key: value for key, value in update_info.items() if value not in (None, False)}
        self.server.close()
        self.server.call("start_weight_update")
        self.server.call("update_weights", update_info=fields)
        self.server.call("finish_weight_update")

    def recover(self) -> None:
        """Make good what a killed client left: an open update is finished, under its version, and a paused engine goes on."""
        served = self.state()
        self.server.close()
        self.server.call("update_weight_version", new_version=weight_version(served["step"], served["identity"]))
        self.server.reset()
        self.server.resume()

    def _staged(self) -> dict[str, Any]:
        """Wait until all ranks have an update prepared, and give what the first has."""
        states = self.server.states()
        while any(state["staging"] for state in states):
            time.sleep(POLL)
            states = self.server.states()
        for state in states:
            if state["error"] is not None:
                kind, text = state["error"]["kind"], state["error"]["text"]
                raise BaseMismatchError(text, kind) if kind in ("wrong_base", "already_target") else CheckpointError(text)
        found = [state["prepared"] for state in states]
        if None in found or len({row["identity"] for row in found}) != 1:
            raise CheckpointError("the ranks prepared different updates: does another client drive this engine?")
        return dict(found[0])


def _message(error: urllib.error.HTTPError) -> str:
    """What a server says about an error."""
    try:
        told = json.loads(error.read())
        text = told.get("error", told)
        return str(text.get("message", text) if isinstance(text, dict) else text)
    except (OSError, ValueError, AttributeError):
        return f"answered {error.code} {cut(error.reason)}"
