"""An S3 server on this machine (moto's), and a proxy in front of it that fails some requests."""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Fault = Callable[[str, str], str]
"""Says, for a request's method and path, what happens to it: ``ok``, ``drop`` (never reaches the server), ``lost`` (its answer does not
come back), or the status of an answer in place of the server's."""
BUCKET = "bucket"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "of-this-test",
    "AWS_SECRET_ACCESS_KEY": "of-this-test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[int]:
    """Run a server with an empty bucket; gives its port on 127.0.0.1."""
    server_of_moto = pytest.importorskip("moto.server", reason="moto[server] is not installed: the tests of S3 need it and s3fs")
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
    server = server_of_moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/moto-api/reset")
        connection.getresponse().read()
        connection.request(
            "PUT", f"/{BUCKET}", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"}
        )
        assert connection.getresponse().status == 200
        connection.close()
        yield port
    finally:
        server.stop()


@contextmanager
def s3_client(port: int) -> Iterator[str]:
    """Have s3fs talk to a port of this machine; gives the URL of the bucket."""
    import s3fs

    before = {name: os.environ.get(name) for name in (*SETTINGS, "AWS_ENDPOINT_URL")}
    os.environ |= {**SETTINGS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield f"s3://{BUCKET}"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def faulty_proxy(port: int, fault: Fault) -> Iterator[int]:
    """Run a proxy to a port; gives its own."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            what = fault(self.command, self.path)
            if what == "drop":
                self.close_connection = True
                return
            if what.isdigit():
                self._answer(int(what), [], b"")
                return
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if what == "lost":
                self.close_connection = True
                return
            self._answer(answer.status, answer.getheaders(), data)

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding") or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

        def log_message(self, *arguments: object) -> None:
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
