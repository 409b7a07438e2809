"""Where streams begin: the server that a party answers on, and the channels that it dials with.

Everything here runs on the network's event loop. A stream is admitted if its certificate carries the name
that its Hello claims and is not revoked, the name is in the book, and it is the one of the two that dials.
The same server tells whoever has a certificate from the authority, by gRPC's standard health service, whether
the party is serving.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from ssl import PEM_cert_to_DER_cert
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from protocols.errors import ConfigError
from protocols.logs import log
from protocols.wire.frames import LARGEST_FRAME, Limits, RefusedError, parse_hello
from protocols.wire.link import METHOD, Dialled, Link
from protocols.wire.parties_pb2 import Hello
from protocols.wire.proof import CHALLENGE, check_proof, prove, refuse_revoked
from protocols.wire.tls import Credentials, channel_credentials, is_loopback, server_credentials

_SERVICE, _, _METHOD = METHOD.strip("/").partition("/")


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
        self._credentials, self._links, self._revoked = credentials, links, revoked
        self._serving = serving

    async def start(self, address: str) -> str:
        """Serve on `address`; the same with the port that was chosen for 0. ConfigError if it is taken."""
        options = [
            *channel_options(self.limits),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
            ("grpc.max_concurrent_streams", 4),
            ("grpc.http2.min_ping_interval_without_data_ms", int(500 * min(1.0, self.limits.keepalive))),
        ]
        self._server = grpc.aio.server(
            options=options, maximum_concurrent_rpcs=4 * max(len(self._links), 1) + 16
        )
        line = {_METHOD: grpc.stream_stream_rpc_method_handler(self._answer)}
        # No Watch: each would hold a place among the concurrent calls for as long as it likes.
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
            if self._credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, server_credentials(self._credentials, self.name))
        except RuntimeError:
            raise ConfigError(
                f"{self.name} cannot serve on {address}: is the port in use, and the address this machine's?"
            ) from None
        await self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """End the streams that are left."""
        await self._server.stop(0.5)

    async def _check_health(self, request: Any, context: Any) -> Any:
        if request.service not in ("", _SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"services are '' and {_SERVICE}")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self._serving() else status.NOT_SERVING)

    async def _answer(self, _: object, context: Any) -> None:
        """One stream that a peer has opened."""

        async def read() -> bytes | None:
            raw = await context.read()
            return None if raw is grpc.aio.EOF else bytes(raw)

        try:
            try:
                async with asyncio.timeout(self.limits.handshake):
                    raw = await read()
            except TimeoutError:
                raise RefusedError("DEADLINE_EXCEEDED", "no Hello came") from None
            if raw is not None:
                hello = parse_hello(raw)
                link, shows = self._admit(hello, context)
                await link.answer(hello, read, context.write, shows)
        except RefusedError as error:
            address = unquote(context.peer())  # of ipv6:%5B::1%5D:50000
            log.warning("handshake refused", extra={"address": address}, exc_info=error)
            await context.abort(grpc.StatusCode[error.status], str(error))

    def _admit(self, hello: Hello, context: Any) -> tuple[Link, dict[str, Any]]:
        """The link of whoever opened this stream, if it is who it says and is the one to dial; and the proof
        that it asks for."""
        said, shows = ascii(hello.party[:63]), dict[str, Any]()
        certificate = b""
        if self._credentials is not None:
            certificate = _certified(context.auth_context(), hello.party)
        link = self._links.get(hello.party)
        if link is None:
            raise RefusedError("PERMISSION_DENIED", f"{said} is not in the book of {self.name}")
        if link.address is not None:
            raise RefusedError(
                "FAILED_PRECONDITION", f"{self.name} dials {said}, not the other way; compare the books"
            )
        if certificate:
            try:
                refuse_revoked(certificate, link.line.peer, self._revoked, self.name)
            except RefusedError as error:
                link.cause = str(error)  # for those who wait for it
                raise
        if self._credentials is not None and len(hello.challenge) == CHALLENGE:
            shows = prove(self._credentials.read(self.name), hello, link.line.session, certificate)
        return link, shows


def _certified(known: Mapping[str, list[bytes]], claimed: str) -> bytes:
    """A peer's certificate, DER, which must carry the name that it claims."""
    found = known.get("x509_subject_alternative_name") or known.get("x509_common_name") or []
    certified = [name.decode("utf-8", "replace") for name in found]
    certificate = known.get("x509_pem_cert")
    if not certified or not certificate:
        raise RefusedError("UNAUTHENTICATED", "no certificate came")
    if claimed not in certified:
        raise RefusedError(
            "PERMISSION_DENIED",
            f"the certificate is for {', '.join(certified)[:200]!a}, the Hello says {claimed[:63]!a}",
        )
    return PEM_cert_to_DER_cert(certificate[0].decode("ascii"))


def dial(
    link: Link, name: str, credentials: Credentials | None, revoked: frozenset[str] = frozenset()
) -> Dialled:
    """A new connection of `name` to a peer, which must show a certificate of the peer's name."""
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
    if not revoked:
        return Dialled(channel)
    asked = Hello(party=name, challenge=secrets.token_bytes(CHALLENGE), session=link.line.session)
    return Dialled(
        channel,
        {"challenge": asked.challenge},
        lambda hello: check_proof(hello, link.line.peer, asked, found, revoked),
    )


def channel_options(limits: Limits) -> list[tuple[str, Any]]:
    """What both ends of a connection are made with."""
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
