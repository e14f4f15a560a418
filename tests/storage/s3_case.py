"""A real S3 server, and a proxy before it that breaks answers on purpose."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["none", "503", "500", "drop", "slow", "corrupt"]

PIECES = 20
PAUSE_SECONDS = 0.002

OURS = {"transfer-encoding", "connection", "content-length", "server", "date"}
"""Headers that the proxy writes itself. It keeps back S3's own checksums, which not every server sends."""


@dataclass
class Faults:
    """Chooses what happens to each GET of a shard; counts them."""

    choose: Callable[[str, int], Fault] = lambda path, number: "none"
    """Path, and how often it was asked for before -> fault."""

    asked: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, path: str) -> Fault:
        path = path.partition("?")[0]
        if not path.endswith(".arrow"):
            return "none"
        with self.lock:
            number = self.asked.get(path, 0)
            self.asked[path] = number + 1
        return self.choose(path, number)

    def reset(self, choose: Callable[[str, int], Fault] = lambda path, number: "none") -> None:
        with self.lock:
            self.choose, self.asked = choose, {}


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on, and answers back, unless a fault was chosen."""

    protocol_version = "HTTP/1.1"
    upstream: int
    faults: Faults

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length) if length else None
        fault = self.faults.take(self.path) if self.command == "GET" else "none"
        if fault in {"500", "503"}:
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream)
        try:
            connection.request(self.command, self.path, content, dict(self.headers))
            response = connection.getresponse()
            body = bytearray(response.read())
        finally:
            connection.close()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in OURS and not name.lower().startswith("x-amz-checksum"):
                self.send_header(name, value)
        # A HEAD tells the length of what it does not send.
        size = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", size or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body, fault)

    def send_body(self, body: bytearray, fault: Fault) -> None:
        if fault == "corrupt":
            body[len(body) // 2] ^= 1
        if fault == "drop":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "slow":
            step = len(body) // PIECES + 1
            for begin in range(0, len(body), step):
                self.wfile.write(body[begin : begin + step])
                self.wfile.flush()
                time.sleep(PAUSE_SECONDS)
        else:
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 - http.server's names

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def proxy_before(upstream: int) -> Iterator[tuple[int, Faults]]:
    """Start a proxy; gives its port and its faults. It refuses connections from the end of the block on."""
    faults = Faults()
    handler = type("Bound", (Proxy,), {"upstream": upstream, "faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
