"""Where streams begin: the server that a party answers on, and the channels that it dials with.

Everything here runs on the network's event loop. A stream is heard if its certificate has a DNS name that is
in the book, and is not revoked; and admitted if its Hello claims that name, and it is the one of the two that
dials. The same server tells whoever has a certificate from the authority, by gRPC's standard health service,
whether the party is serving. `door.py` bounds the connections.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc_health.v1 import health_pb2

from protocols.errors import ConfigError
from protocols.network.door import Door, room
from protocols.network.frames import LARGEST_FRAME, Limits, RefusedError, parse_hello
from protocols.network.link import METHOD, Dialled, Link, quietly
from protocols.network.parties_pb2 import Hello
from protocols.network.proof import CHALLENGE, check_proof, prove, refuse_revoked
from protocols.network.tls import (
    Credentials,
    Material,
    channel_credentials,
    is_loopback,
    last_good,
    names,
    server_credentials,
)

_log = logging.getLogger("vfl")  # events and fields as `protocols.logs` lists them
_SERVICE, _, _METHOD = METHOD.strip("/").partition("/")
_STREAMS = 2  # of one name at a time: the one that is, and one that takes its place


class Server:
    """A party's gRPC server: one stream for each peer that dials, and the health service."""

    def __init__(
        self,
        name: str,
        credentials: Credentials | None,
        limits: Limits,
        links: Mapping[str, Link],
        revoked: frozenset[str] = frozenset(),
        serving: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name, self.limits = name, limits
        self._read = None if credentials is None else last_good(credentials, name)
        self._links, self._revoked = links, revoked
        self._serving = serving
        self._most = room(len(links))
        self._door = Door(name, self._most, limits.handshake)
        self._streams: Counter[frozenset[str]] = Counter()

    async def start(self, address: str) -> str:
        """Serve on `address`; the same with the port that was chosen for 0. ConfigError if it is taken."""
        options = [*channel_options(self.limits), *_bounds(self.limits, self._most)]
        self._server = grpc.aio.server(options=options)
        line = {_METHOD: grpc.stream_stream_rpc_method_handler(self._answer)}
        # No Watch: each would hold a stream for as long as it likes.
        health = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self._check_health,
                health_pb2.HealthCheckRequest.FromString,
                health_pb2.HealthCheckResponse.SerializeToString,
            )
        }
        handlers = ((_SERVICE, line), ("grpc.health.v1.Health", health))
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(service, methods) for service, methods in handlers)
        )
        try:
            if self._read is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, server_credentials(self._asked))
        except RuntimeError:
            raise ConfigError(
                f"{self.name} cannot serve on {address}: is the port in use, and the address this machine's?"
            ) from None
        await self._server.start()
        self._watch = asyncio.create_task(self._door.keep(port))
        return f"{address.rpartition(':')[0]}:{port}"

    def _asked(self) -> Material:
        """Return our certificate and key. gRPC asks for them at each connection."""
        assert self._read is not None
        self._door.knock()
        return self._read()

    async def stop(self) -> None:
        """End the streams that are left."""
        await quietly(self._watch)
        await self._server.stop(0.5)

    async def _check_health(self, request: Any, context: Any) -> Any:
        if request.service not in ("", _SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"services are '' and {_SERVICE}")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self._serving() else status.NOT_SERVING)

    async def _answer(self, _: object, context: Any) -> None:
        """Answer one stream that somebody has opened."""
        peers = frozenset[str]()
        try:
            try:
                owner = self._look_at(context)
            except RefusedError:
                self._door.dismiss(context.peer())
                raise
            peers = owner.peers
            with self._place(peers), self._door.carrying(context.peer()):
                await self._hear(owner, context)
        except RefusedError as error:
            extra = {"party": self.name, "address": unquote(context.peer())}
            if peers:
                extra["peer"] = min(peers)  # the log bounds the lines about each, and about all strangers
            _log.warning("stream refused", extra=extra, exc_info=error)
            await context.abort(grpc.StatusCode[error.status], str(error))

    def _look_at(self, context: Any) -> _Owner:
        """Return who opened this stream, by its certificate alone, if it may be a peer of ours."""
        if self._read is None:
            return _Owner(tuple(self._links), frozenset(self._links), b"")
        owner = _certified(context.auth_context(), self._links, self.name)
        for peer in owner.peers:
            try:
                refuse_revoked(owner.certificate, peer, self._revoked, self.name)
            except RefusedError as error:
                self._links[peer].cause = str(error)  # for those who wait for it
                raise
        return owner

    @contextmanager
    def _place(self, peers: frozenset[str]) -> Iterator[None]:
        """Hold one of the streams that these names may have open, until it ends."""
        if self._streams[peers] >= _STREAMS * len(peers):
            raise RefusedError(
                "UNAVAILABLE", f"{_listed(sorted(peers))} has {self._streams[peers]} streams open already"
            )
        self._streams[peers] += 1
        try:
            yield
        finally:
            self._streams[peers] -= 1

    async def _hear(self, owner: _Owner, context: Any) -> None:
        async def read() -> bytes | None:
            raw = await context.read()
            return None if raw is grpc.aio.EOF else bytes(raw)

        try:
            async with asyncio.timeout(self.limits.handshake):
                raw = await read()
        except TimeoutError:
            raise RefusedError("DEADLINE_EXCEEDED", "no Hello came") from None
        if raw is not None:
            hello = parse_hello(raw)
            link, shows = self._admit(hello, owner)
            await link.answer(hello, read, context.write, shows)

    def _admit(self, hello: Hello, owner: _Owner) -> tuple[Link, dict[str, Any]]:
        """Return the link of the peer that opened this stream, if it is who it says and may dial, and
        the proof that it asks for."""
        said, shows = ascii(hello.party[:63]), dict[str, Any]()
        if hello.party not in owner.names:
            raise RefusedError(
                "PERMISSION_DENIED", f"the certificate is for {_listed(owner.names)}, the Hello says {said}"
            )
        link = self._links.get(hello.party)
        if link is None:
            raise RefusedError("PERMISSION_DENIED", f"{said} is not in the book of {self.name}")
        if link.address is not None:
            raise RefusedError(
                "FAILED_PRECONDITION", f"{self.name} dials {said}, not the other way; compare the books"
            )
        if self._read is not None and len(hello.challenge) == CHALLENGE:
            shows = prove(self._read(), hello, link.line.session, owner.certificate)
        return link, shows


class _Owner(NamedTuple):
    """The holder of a certificate. peers: those of its names that are in the book."""

    names: tuple[str, ...]
    peers: frozenset[str]
    certificate: bytes  # DER


def _certified(known: Mapping[str, list[bytes]], links: Mapping[str, Link], me: str) -> _Owner:
    """Return whom a certificate names; at least one name must be a peer's."""
    shown = known.get("x509_pem_cert")
    if not shown:
        raise RefusedError("UNAUTHENTICATED", "no certificate came")
    try:
        found = x509.load_pem_x509_certificate(shown[0])
    except ValueError:
        raise RefusedError("PERMISSION_DENIED", "the certificate cannot be read") from None
    certified = tuple(names(found))
    peers = frozenset(certified).intersection(links)
    if not peers:
        raise RefusedError(
            "PERMISSION_DENIED",
            f"the certificate is for {_listed(certified)}, by the DNS names in its subjectAltName: nobody in "
            f"the book of {me}",
        )
    return _Owner(certified, peers, found.public_bytes(Encoding.DER))


def _listed(names: Iterable[str]) -> str:
    """Write names that somebody else chose, bounded and quoted."""
    return ascii(", ".join(names)[:200] or "nobody")


def _bounds(limits: Limits, most: int) -> list[tuple[str, Any]]:
    """Return the options that bound what strangers can take of a server with `most` connections."""
    handshake, streams = int(limits.handshake * 1000), _STREAMS * most
    return [
        ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
        ("grpc.max_allowed_incoming_connections", most),
        ("grpc.server_handshake_timeout_ms", handshake),
        ("grpc.max_connection_idle_ms", handshake),
        ("grpc.max_concurrent_streams", _STREAMS),  # of one connection
        # Each is looked at and refused at once. If the core refused some before, it might be an honest one.
        ("grpc.server.max_pending_requests", streams),
        ("grpc.server.max_pending_requests_hard_limit", streams),
        ("grpc.http2.min_ping_interval_without_data_ms", int(500 * min(1.0, limits.keepalive))),
    ]


def dial(
    link: Link, name: str, credentials: Credentials | None, revoked: frozenset[str] = frozenset()
) -> Dialled:
    """Open a connection from `name` to a peer, which must show a certificate of the peer's name."""
    address = str(link.address)
    options = channel_options(link.limits)
    # A shared connection would keep an earlier attempt's certificates and waiting time.
    options += [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    if is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))
    if credentials is None:
        return Dialled(grpc.aio.insecure_channel(address, options))
    options.append(("grpc.ssl_target_name_override", link.line.peer))
    found = credentials.read(name)
    channel = grpc.aio.secure_channel(address, channel_credentials(found), options)
    asked = Hello(party=name, challenge=secrets.token_bytes(CHALLENGE), session=link.line.session)
    return Dialled(
        channel,
        {"challenge": asked.challenge},
        lambda hello: check_proof(hello, link.line.peer, asked, found, revoked),
    )


def channel_options(limits: Limits) -> list[tuple[str, Any]]:
    """Return the gRPC options that both ends of a connection use."""
    keepalive = int(limits.keepalive * 1000)
    return [
        ("grpc.max_receive_message_length", LARGEST_FRAME),
        ("grpc.max_send_message_length", LARGEST_FRAME),
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_timeout_ms", keepalive),
        ("grpc.http2.ping_timeout_ms", keepalive),  # or a ping in flight lets a dead line live a minute
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
