from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StartRequest(_message.Message):
    __slots__ = ("route", "address", "share", "root", "ca", "cert", "key", "server_name", "tls")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    CERT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    route: str
    address: str
    share: float
    root: str
    ca: str
    cert: str
    key: str
    server_name: str
    tls: bool
    def __init__(self, route: _Optional[str] = ..., address: _Optional[str] = ..., share: _Optional[float] = ..., root: _Optional[str] = ..., ca: _Optional[str] = ..., cert: _Optional[str] = ..., key: _Optional[str] = ..., server_name: _Optional[str] = ..., tls: _Optional[bool] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("route",)
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    route: str
    def __init__(self, route: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("route",)
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    route: str
    def __init__(self, route: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("shadows",)
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    shadows: _containers.RepeatedCompositeFieldContainer[Shadow]
    def __init__(self, shadows: _Optional[_Iterable[_Union[Shadow, _Mapping]]] = ...) -> None: ...

class Shadow(_message.Message):
    __slots__ = ("route", "address", "share", "writes", "since", "trouble")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    WRITES_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    route: str
    address: str
    share: float
    writes: bool
    since: int
    trouble: str
    def __init__(self, route: _Optional[str] = ..., address: _Optional[str] = ..., share: _Optional[float] = ..., writes: _Optional[bool] = ..., since: _Optional[int] = ..., trouble: _Optional[str] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("ours", "shadow", "prefix", "socket")
    OURS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    SOCKET_FIELD_NUMBER: _ClassVar[int]
    ours: str
    shadow: StartRequest
    prefix: str
    socket: str
    def __init__(self, ours: _Optional[str] = ..., shadow: _Optional[_Union[StartRequest, _Mapping]] = ..., prefix: _Optional[str] = ..., socket: _Optional[str] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("path", "requests", "answers", "answered", "code", "seconds", "trace", "dropped")
    class DroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PATH_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    path: str
    requests: _containers.RepeatedScalarFieldContainer[bytes]
    answers: _containers.RepeatedScalarFieldContainer[bytes]
    answered: bool
    code: int
    seconds: float
    trace: str
    dropped: _containers.ScalarMap[str, int]
    def __init__(self, path: _Optional[str] = ..., requests: _Optional[_Iterable[bytes]] = ..., answers: _Optional[_Iterable[bytes]] = ..., answered: _Optional[bool] = ..., code: _Optional[int] = ..., seconds: _Optional[float] = ..., trace: _Optional[str] = ..., dropped: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("shadow", "methods")
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    shadow: Shadow
    methods: _containers.RepeatedCompositeFieldContainer[Method]
    def __init__(self, shadow: _Optional[_Union[Shadow, _Mapping]] = ..., methods: _Optional[_Iterable[_Union[Method, _Mapping]]] = ...) -> None: ...

class Method(_message.Message):
    __slots__ = ("name", "calls", "same", "different", "dropped", "skipped", "ours", "candidate", "differences")
    class SkippedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    DIFFERENT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    OURS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    name: str
    calls: int
    same: int
    different: int
    dropped: int
    skipped: _containers.ScalarMap[str, int]
    ours: Latency
    candidate: Latency
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    def __init__(self, name: _Optional[str] = ..., calls: _Optional[int] = ..., same: _Optional[int] = ..., different: _Optional[int] = ..., dropped: _Optional[int] = ..., skipped: _Optional[_Mapping[str, int]] = ..., ours: _Optional[_Union[Latency, _Mapping]] = ..., candidate: _Optional[_Union[Latency, _Mapping]] = ..., differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ...) -> None: ...

class Latency(_message.Message):
    __slots__ = ("count", "p50", "p99")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    P50_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    count: int
    p50: float
    p99: float
    def __init__(self, count: _Optional[int] = ..., p50: _Optional[float] = ..., p99: _Optional[float] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("field", "count", "noise", "asked", "examples")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    field: str
    count: int
    noise: int
    asked: int
    examples: _containers.RepeatedCompositeFieldContainer[Example]
    def __init__(self, field: _Optional[str] = ..., count: _Optional[int] = ..., noise: _Optional[int] = ..., asked: _Optional[int] = ..., examples: _Optional[_Iterable[_Union[Example, _Mapping]]] = ...) -> None: ...

class Example(_message.Message):
    __slots__ = ("ours", "candidate", "field", "request", "trace")
    OURS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    ours: str
    candidate: str
    field: str
    request: str
    trace: str
    def __init__(self, ours: _Optional[str] = ..., candidate: _Optional[str] = ..., field: _Optional[str] = ..., request: _Optional[str] = ..., trace: _Optional[str] = ...) -> None: ...
