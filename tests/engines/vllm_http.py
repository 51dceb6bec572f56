"""A real vLLM server over HTTP that follows a chain and switches fine-tunes: run by hand, by ``tests/engines/vllm.sh``.

    python -m tests.engines.vllm_http WORK

It needs what ``vllm_acceptance`` wrote into WORK (``prepare`` and ``fresh``). It prints lines, and exits with 1 at the first difference.
"""

from __future__ import annotations

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

from tests.support.vllm_checks import ENVIRONMENT, MODES, PROMPTS, check, folder, refused


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(log: Path) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder("base"), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "bfloat16", "--max-model-len", "256", "--enforce-eager", "--seed", "0"]
    command += ["--served-model-name", "m", "--weight-transfer-config", '{"backend": "ckptdiff"}']
    command += ["--worker-extension-cls", "ckptdiff.engines.vllm_engine.Extension"]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    with open(log, "wb") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if server.poll() is not None:
            sys.exit(f"the server ended: see {log}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return server, url
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    sys.exit("the server did not start")


def outputs(url: str) -> list[Any]:
    """Greedy tokens and their logprobs, as :func:`vllm_acceptance.outputs`, of which only the chosen tokens' are compared."""
    made = []
    for prompt in PROMPTS:
        body = {
            "model": "m",
            "prompt": prompt,
            "max_tokens": 24,
            "temperature": 0,
            "logprobs": 5,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as response:
            (choice,) = json.loads(response.read())["choices"]
        made.append([choice["token_ids"], choice["logprobs"]["token_logprobs"]])
    return made


def chosen(made: list[Any]) -> list[Any]:
    return [[tokens, [row[str(token)] for token, row in zip(tokens, rows, strict=True)]] for tokens, rows in made]


def version(url: str) -> str:
    with urllib.request.urlopen(f"{url}/weight_info", timeout=60) as response:
        return str(json.loads(response.read())["weight_version"])


def run(url: str, work: Path) -> None:
    from ckptdiff.engines.vllm_client import Client, HttpServer

    fresh = {
        name: [chosen(made) for made in json.loads((work / f"fresh-{name}-1.json").read_text()).values()]
        for name in ("base", "sft", "grpo")
    }

    def serves(name: str, what: str) -> None:
        check(outputs(url) in fresh[name], f"HTTP, {what}: tokens and logprobs are those of {name}, freshly loaded")

    serves("base", "before")
    for mode in MODES:
        client = Client(HttpServer(url), mode=mode)
        for name, path in (("sft", "sft-sparse"), ("grpo", "grpo-sparse"), ("base", "")):
            updated = client.update(patch=str(work / path)) if path else client.update(base=True)
            serves(name, f"{mode}, {path or 'back to the base'} (paused {1000 * updated.timings['paused']:.0f} ms)")
            check(version(url) == updated.identity, f"HTTP, {mode}: weight_version")
        refused(f"HTTP, {mode}, wrong base", lambda c=client: c.update(patch=str(work / "other-sft")), "starts from")
        serves("base", f"{mode}, after the refusal")
    for mode, at, seconds in KILLS:
        killed(url, mode, at, seconds, f"patch={work / 'sft-sparse'}")
        client = Client(HttpServer(url), mode=mode)
        client.recover()
        state, what = client.state(), f"{mode}, a client killed with SIGKILL at {at}{' while it ran' * (not seconds)}"
        name = "base" if state["identity"] == state["base"] else "sft"
        serves(name, f"{what}; the next one recovers")
        check(version(url) == state["identity"], f"HTTP, {what}: weight_version")
        if name == "base":
            client.update(patch=str(work / "sft-sparse"))
            serves("sft", f"{what}; the same update again")
        client.update(base=True)
    killed(url, "move", "update_weights apply", 0, f"chain={work / 'chain'}")
    command = [sys.executable, "-m", "ckptdiff", "chain", "follow", str(work / "chain"), url, "--once", "--mode", "move"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"     {done.stdout.strip()} {done.stderr.strip()[:300]}")
    serves("grpo", "ckptdiff chain follow --once")
    print(f"     weight_version: {version(url)}")
    again = subprocess.run(command, capture_output=True, text=True)
    check(again.returncode == 0 and not again.stdout, "HTTP, chain follow again: nothing to do")


KILLS = [
    (mode, at, seconds)
    for mode in MODES
    for at, seconds in (
        ("pause", 60),
        ("update_weights apply", 60),
        ("update_weights apply", 0),
        ("finish_weight_update", 60),
        ("resume", 60),
    )
]
"""Modes, calls at which a client is killed, and how long it waits there: with 0 the server is at work."""


def killed(url: str, mode: str, at: str, seconds: float, wanted: str) -> None:
    """A client in a process of its own that is killed with SIGKILL in the middle of an update."""
    command = [sys.executable, "-m", "tests.support.killed_client", url, mode, at, str(seconds), wanted]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        reached = any(line.strip() == at for line in iter(client.stdout.readline, ""))
        client.kill()
    check(reached and client.returncode == -signal.SIGKILL, f"HTTP, {mode}: a client was killed at {at}")


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    process, address = start(place / "server.log")
    try:
        run(address, place)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
