from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "chunk", "ack", "bye", "ping", "refusal")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    chunk: Chunk
    ack: Ack
    bye: Bye
    ping: Ping
    refusal: Refusal
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "party", "peer", "session", "peer_session", "received", "room", "clock", "challenge", "certificates", "proof")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTY_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PEER_SESSION_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    version: int
    party: str
    peer: str
    session: bytes
    peer_session: bytes
    received: int
    room: int
    clock: int
    challenge: bytes
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    proof: bytes
    def __init__(self, version: _Optional[int] = ..., party: _Optional[str] = ..., peer: _Optional[str] = ..., session: _Optional[bytes] = ..., peer_session: _Optional[bytes] = ..., received: _Optional[int] = ..., room: _Optional[int] = ..., clock: _Optional[int] = ..., challenge: _Optional[bytes] = ..., certificates: _Optional[_Iterable[bytes]] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("number", "header", "data", "last")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    number: int
    header: Header
    data: bytes
    last: bool
    def __init__(self, number: _Optional[int] = ..., header: _Optional[_Union[Header, _Mapping]] = ..., data: _Optional[bytes] = ..., last: bool = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("job", "scope", "sequence", "kind", "depth", "size")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    job: str
    scope: str
    sequence: int
    kind: str
    depth: int
    size: int
    def __init__(self, job: _Optional[str] = ..., scope: _Optional[str] = ..., sequence: _Optional[int] = ..., kind: _Optional[str] = ..., depth: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("through", "room")
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    through: int
    room: int
    def __init__(self, through: _Optional[int] = ..., room: _Optional[int] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ping(_message.Message):
    __slots__ = ("number", "answer")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    number: int
    answer: bool
    def __init__(self, number: _Optional[int] = ..., answer: bool = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("status", "reason")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: str
    reason: str
    def __init__(self, status: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
