"""Why there is no stream to a peer, in words that say what to look at."""

from __future__ import annotations

import grpc

from protocols.network.frames import plain

# What gRPC says, and what it means to the one who dials.
_HINTS = {
    "Hostname Verification": "what answers there has no certificate for {peer}",
    "expired": "its certificate has expired, or one of the two clocks is wrong",
    "not yet valid": "its certificate is not valid yet, or one of the two clocks is wrong",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not from our authority, or not valid now",
    "WRONG_VERSION_NUMBER": "what answers there does not speak TLS; is the port right?",
    "ALPN": "what answers there speaks TLS but not gRPC; is the port right?",
    "errors resolving": "there is no such host; is its address in the book spelt right, and is DNS there?",
    "Connection refused": "nothing listens there; is {peer} running, and the port right?",
    "Socket closed": "does it accept our certificate, and is our clock right?",
    "unexpected eof": "does it accept our certificate, and is our clock right?",
    "Handshake read failed": "what listens there hung up at once; is the port right?",
    "Method not found": "what answers there speaks gRPC but is no party; is the port right?",
}


def cause(error: grpc.aio.AioRpcError, peer: str) -> str:
    """What gRPC says, bounded and in one line, and what it means."""
    said = plain(str(error.details() or ""))
    hint = next((hint for sign, hint in _HINTS.items() if sign in said), "")
    return f"{error.code().name}: {said}{f' ({hint.format(peer=peer)})' if hint else ''}"
