from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Choice(_message.Message):
    __slots__ = ("service", "method", "namespace")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    service: str
    method: str
    namespace: str
    def __init__(self, service: _Optional[str] = ..., method: _Optional[str] = ..., namespace: _Optional[str] = ...) -> None: ...

class TapRequest(_message.Message):
    __slots__ = ("choice", "messages")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    choice: Choice
    messages: bool
    def __init__(self, choice: _Optional[_Union[Choice, _Mapping]] = ..., messages: _Optional[bool] = ...) -> None: ...

class TapResponse(_message.Message):
    __slots__ = ("events", "dropped")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    dropped: int
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., dropped: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("call", "time", "ended", "message")
    CALL_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    call: int
    time: int
    ended: Ended
    message: Message
    def __init__(self, call: _Optional[int] = ..., time: _Optional[int] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., message: _Optional[_Union[Message, _Mapping]] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("service", "path", "namespace", "sent", "sent_bytes", "received", "received_bytes", "duration", "code", "message", "trace")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    service: str
    path: str
    namespace: str
    sent: int
    sent_bytes: int
    received: int
    received_bytes: int
    duration: int
    code: int
    message: str
    trace: str
    def __init__(self, service: _Optional[str] = ..., path: _Optional[str] = ..., namespace: _Optional[str] = ..., sent: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., received: _Optional[int] = ..., received_bytes: _Optional[int] = ..., duration: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., trace: _Optional[str] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("path", "received", "bytes", "text")
    PATH_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    path: str
    received: bool
    bytes: int
    text: str
    def __init__(self, path: _Optional[str] = ..., received: _Optional[bool] = ..., bytes: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class BeginFaultRequest(_message.Message):
    __slots__ = ("choice", "latency", "error", "share", "duration", "after", "seed")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    choice: Choice
    latency: int
    error: str
    share: float
    duration: int
    after: bool
    seed: int
    def __init__(self, choice: _Optional[_Union[Choice, _Mapping]] = ..., latency: _Optional[int] = ..., error: _Optional[str] = ..., share: _Optional[float] = ..., duration: _Optional[int] = ..., after: _Optional[bool] = ..., seed: _Optional[int] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("id", "asked", "begun", "left", "seen", "injected", "words")
    ID_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    INJECTED_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    asked: BeginFaultRequest
    begun: int
    left: int
    seen: int
    injected: int
    words: str
    def __init__(self, id: _Optional[str] = ..., asked: _Optional[_Union[BeginFaultRequest, _Mapping]] = ..., begun: _Optional[int] = ..., left: _Optional[int] = ..., seen: _Optional[int] = ..., injected: _Optional[int] = ..., words: _Optional[str] = ...) -> None: ...

class StopFaultsRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class StopFaultsResponse(_message.Message):
    __slots__ = ("faults",)
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    faults: _containers.RepeatedCompositeFieldContainer[Fault]
    def __init__(self, faults: _Optional[_Iterable[_Union[Fault, _Mapping]]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("faults", "taps")
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    TAPS_FIELD_NUMBER: _ClassVar[int]
    faults: _containers.RepeatedCompositeFieldContainer[Fault]
    taps: _containers.RepeatedCompositeFieldContainer[Tap]
    def __init__(self, faults: _Optional[_Iterable[_Union[Fault, _Mapping]]] = ..., taps: _Optional[_Iterable[_Union[Tap, _Mapping]]] = ...) -> None: ...

class Tap(_message.Message):
    __slots__ = ("choice", "messages", "begun", "seen", "dropped")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    choice: Choice
    messages: bool
    begun: int
    seen: int
    dropped: int
    def __init__(self, choice: _Optional[_Union[Choice, _Mapping]] = ..., messages: _Optional[bool] = ..., begun: _Optional[int] = ..., seen: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...
