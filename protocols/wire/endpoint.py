"""Where streams begin: the server that a party answers on, and the channels that it dials with.

Everything here runs on the network's event loop. A stream is admitted if its certificate carries the name
that its Hello claims, the name is in the book, and it is the one of the two that dials.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from protocols.errors import ConfigError
from protocols.wire.line import LARGEST_FRAME, Limits, RefusedError, parse_hello
from protocols.wire.link import METHOD, Link
from protocols.wire.tls import Credentials, channel_credentials, is_loopback, server_credentials

_log = logging.getLogger(__name__)


class Server:
    """A party's gRPC server: one method, one stream for each peer that dials."""

    def __init__(
        self, name: str, credentials: Credentials | None, limits: Limits, links: Mapping[str, Link]
    ) -> None:
        self.name, self.limits = name, limits
        self._credentials, self._links = credentials, links

    async def start(self, address: str) -> str:
        """Serve on `address`; the same with the port that was chosen for 0. ConfigError if it is taken."""
        options = [
            *_options(self.limits),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
            ("grpc.max_concurrent_streams", 4),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
        ]
        self._server = grpc.aio.server(
            options=options, maximum_concurrent_rpcs=4 * max(len(self._links), 1) + 16
        )
        service, _, method = METHOD.strip("/").partition("/")
        handlers = {method: grpc.stream_stream_rpc_method_handler(self._answer)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
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

    async def _answer(self, _: object, context: Any) -> None:
        """One stream that a peer has opened."""

        async def read() -> bytes | None:
            raw = await context.read()
            return None if raw is grpc.aio.EOF else bytes(raw)

        try:
            try:
                async with asyncio.timeout(self.limits.handshake):
                    hello = await read()
            except TimeoutError:
                raise RefusedError("DEADLINE_EXCEEDED", "no Hello came") from None
            if hello is not None:
                await self._admit(hello, context).answer(hello, read, context.write)
        except RefusedError as error:
            _log.warning("%s: a stream from %s is refused: %s", self.name, ascii(context.peer()), error)
            await context.abort(grpc.StatusCode[error.status], str(error))

    def _admit(self, raw: bytes, context: Any) -> Link:
        """The link of whoever opened this stream, if it is who it says and is the one to dial."""
        claimed = parse_hello(raw).party
        said = ascii(claimed[:63])
        if self._credentials is not None:
            certified = _certified(context.auth_context())
            if not certified:
                raise RefusedError("UNAUTHENTICATED", "no certificate came")
            if claimed not in certified:
                found = ascii(", ".join(certified)[:200])
                raise RefusedError(
                    "PERMISSION_DENIED", f"the certificate is for {found}, the Hello says {said}"
                )
        link = self._links.get(claimed)
        if link is None:
            raise RefusedError("PERMISSION_DENIED", f"{said} is not in the book of {self.name}")
        if link.address is not None:
            raise RefusedError(
                "FAILED_PRECONDITION", f"{self.name} dials {said}, not the other way; compare the books"
            )
        return link


def _certified(known: Mapping[str, list[bytes]]) -> list[str]:
    """The names of a peer's certificate; its common name where it has no others."""
    found = known.get("x509_subject_alternative_name") or known.get("x509_common_name") or []
    return [name.decode("utf-8", "replace") for name in found]


def open_channel(link: Link, name: str, credentials: Credentials | None, limits: Limits) -> grpc.aio.Channel:
    """A new connection of `name` to a peer, which must show a certificate of the peer's name."""
    address = str(link.address)
    options = _options(limits)
    # A shared connection would keep an earlier attempt's certificates and waiting time.
    options += [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    if is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    options.append(("grpc.ssl_target_name_override", link.line.peer))
    return grpc.aio.secure_channel(address, channel_credentials(credentials, name), options)


def _options(limits: Limits) -> list[tuple[str, Any]]:
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
