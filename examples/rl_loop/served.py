"""A vLLM server in a process of its own, and what is asked of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_SERVER_DEV_MODE": "1",
}
PLUGIN = [
    *("--weight-transfer-config", '{"backend": "ckptdiff"}'),
    *("--worker-extension-cls", "ckptdiff.engines.vllm_engine.Extension"),
]


class Served:
    """A server of a checkpoint on loopback, which ends with the context.

    Args:
        python: of the server's virtual environment.
        model: the checkpoint.
        log: file for what the server prints.
        plugin: whether it takes updates.
    """

    def __init__(self, python: str, model: Path, log: Path, plugin: bool = True) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{port}", log
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "policy"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "256", "--enforce-eager"]
        with open(log, "wb") as out:
            self._process = subprocess.Popen(
                command + PLUGIN * plugin, env={**os.environ, **SETTINGS}, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> Served:
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        for _ in range(600):
            if self._process.poll() is not None:
                sys.exit(f"the server ended: see {self._log}")
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        sys.exit(f"the server did not start: see {self._log}")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(60)

    def post(self, path: str, body: Any) -> Any:
        """What a route answers, as JSON."""
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.loads(response.read() or b"null")

    def complete(self, prompts: list[list[int]], tokens: int, temperature: float) -> list[tuple[list[int], list[float]]]:
        """Tokens and their logprobs for each prompt of token ids."""
        body = {"model": "policy", "prompt": prompts, "max_tokens": tokens, "temperature": temperature, "logprobs": 1}
        choices = self.post("v1/completions", {**body, "return_token_ids": True})["choices"]
        rows = sorted(choices, key=lambda choice: choice["index"])
        return [(row["token_ids"], row["logprobs"]["token_logprobs"]) for row in rows]
