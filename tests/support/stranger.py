"""An attacker of a party's port: so many connections, and as little on each as it takes to keep it.

    python -m tests.support.stranger ADDRESS COUNT SAYING [options]

--as AUTHORITY CERTIFICATE KEY: with TLS. --from ADDRESS: of this machine. --again RATE: another for each that
is ended, at most so many a second. It says "ready" once it has tried them all, and when its standard input
ends, how many it opened and for how many seconds the longest was kept. Only the standard library, so that it
starts at once.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress

LINE = "/vfl.parties.v1.Parties/Line"
CHECK = "/grpc.health.v1.Health/Check"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAMS = 8  # that are opened on each connection, whatever the other end allows


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One of HTTP/2's."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def call(path: str, stream: int) -> bytes:
    """The beginning of a call, after which nothing comes."""
    fields = {":method": "POST", ":scheme": "https", ":path": path, ":authority": "telco"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    literal = (
        b"\0" + bytes((len(k),)) + k.encode() + bytes((len(v),)) + v.encode() for k, v in fields.items()
    )
    return frame(1, 4, stream, b"".join(literal))


def calls(path: str) -> bytes:
    return b"".join(call(path, 1 + 2 * i) for i in range(STREAMS))


def greeting() -> bytes:
    """What a client says first in TLS; whoever hears it signs, and waits for an answer."""
    outgoing, context = ssl.MemoryBIO(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="telco").do_handshake()
    return outgoing.read()


SETTINGS = PREFACE + frame(4, 0, 0)
CLOSED = PREFACE + frame(4, 0, 0, b"\0\4\0\0\0\0")  # nothing may be sent back on a stream
SAYINGS: dict[str, bytes] = {
    "nothing": b"",
    "half": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # of a TLS handshake
    "greeting": greeting(),
    "tls": b"",
    "settings": SETTINGS,
    "lines": SETTINGS + calls(LINE),
    "checks": SETTINGS + calls(CHECK),
    "resets": SETTINGS + b"".join(call(LINE, i) + frame(3, 0, i, b"\0\0\0\x08") for i in range(1, 401, 2)),
    "unread": CLOSED + calls(LINE),
}


def opener(
    address: str, saying: str, files: list[str] | None, source: str = ""
) -> Callable[[], socket.socket]:
    host, _, port = address.rpartition(":")
    bound = (source, 0) if source else None
    context: ssl.SSLContext | None = None
    if files is not None:
        context = ssl.create_default_context(cafile=files[0])
        context.check_hostname = False
        context.load_cert_chain(files[1], files[2])
        context.set_alpn_protocols(["h2"])

    def connect() -> socket.socket:
        opened = socket.create_connection((host, int(port)), 5, bound)
        if context is not None:
            opened = context.wrap_socket(opened)
        opened.sendall(SAYINGS[saying])
        opened.setblocking(False)
        return opened

    return connect


class Stranger:
    """It holds `count` connections, as far as it is let."""

    def __init__(self, connect: Callable[[], socket.socket], count: int) -> None:
        self._connect, self._count = connect, count
        self._open: dict[socket.socket, float] = {}
        self._selector = selectors.DefaultSelector()
        self.opened, self.longest = 0, 0.0

    def fill(self, until: float, most: float = float("inf")) -> None:
        """Open what is missing, at most so many, as far as there is time."""
        most += self.opened
        while len(self._open) < self._count and self.opened < most and time.monotonic() < until:
            with suppress(OSError):
                one = self._connect()
                self._open[one] = time.monotonic()
                self._selector.register(one, selectors.EVENT_READ)
                self.opened += 1

    def drain(self, seconds: float) -> None:
        """Take leave of those that were ended."""
        for key, _ in self._selector.select(seconds):
            one = key.fileobj
            assert isinstance(one, socket.socket)
            try:
                over = not one.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except OSError:
                over = True
            if over:
                self._selector.unregister(one)
                self.longest = max(self.longest, time.monotonic() - self._open.pop(one))
                one.close()

    def close(self) -> None:
        for one, since in self._open.items():
            self.longest = max(self.longest, time.monotonic() - since)
            one.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("count", type=int)
    parser.add_argument("saying", choices=SAYINGS)
    parser.add_argument("--again", type=float, default=0.0)
    parser.add_argument("--from", dest="source", default="")
    parser.add_argument("--as", dest="files", nargs=3)
    said = parser.parse_args()
    stranger = Stranger(opener(said.address, said.saying, said.files, said.source), said.count)
    stranger.fill(time.monotonic() + 20)
    print("ready", flush=True)
    over = selectors.DefaultSelector()
    over.register(sys.stdin, selectors.EVENT_READ)
    last = time.monotonic()
    end = last + 60  # whatever becomes of who started it
    while not over.select(0) and time.monotonic() < end:
        stranger.drain(0.02)
        last, since = time.monotonic(), last
        stranger.fill(last + 0.1, said.again * (last - since))
    stranger.close()
    print(stranger.opened, f"{stranger.longest:.2f}", flush=True)


if __name__ == "__main__":
    main()
