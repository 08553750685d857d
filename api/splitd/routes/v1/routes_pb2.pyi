from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("routes",)
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    def __init__(self, routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("name", "address", "trouble", "foreign", "candidates", "instruments")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    INSTRUMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    trouble: str
    foreign: bool
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    instruments: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., trouble: _Optional[str] = ..., foreign: _Optional[bool] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., instruments: _Optional[_Iterable[str]] = ...) -> None: ...

class Terms(_message.Message):
    __slots__ = ("route", "name", "address", "namespaces", "share", "until", "back_at", "deadline", "capabilities", "ca", "cert", "key", "server_name", "tls")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    BACK_AT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    CERT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    route: str
    name: str
    address: str
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    share: float
    until: float
    back_at: float
    deadline: float
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    ca: str
    cert: str
    key: str
    server_name: str
    tls: bool
    def __init__(self, route: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., namespaces: _Optional[_Iterable[str]] = ..., share: _Optional[float] = ..., until: _Optional[float] = ..., back_at: _Optional[float] = ..., deadline: _Optional[float] = ..., capabilities: _Optional[_Iterable[str]] = ..., ca: _Optional[str] = ..., cert: _Optional[str] = ..., key: _Optional[str] = ..., server_name: _Optional[str] = ..., tls: _Optional[bool] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("terms", "backend", "trouble", "drained", "since", "configured", "objects", "chosen", "sent_home", "calls", "failures", "failed", "instruments")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    CONFIGURED_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    SENT_HOME_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    INSTRUMENTS_FIELD_NUMBER: _ClassVar[int]
    terms: Terms
    backend: str
    trouble: str
    drained: str
    since: float
    configured: bool
    objects: int
    chosen: int
    sent_home: int
    calls: int
    failures: int
    failed: float
    instruments: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, terms: _Optional[_Union[Terms, _Mapping]] = ..., backend: _Optional[str] = ..., trouble: _Optional[str] = ..., drained: _Optional[str] = ..., since: _Optional[float] = ..., configured: _Optional[bool] = ..., objects: _Optional[int] = ..., chosen: _Optional[int] = ..., sent_home: _Optional[int] = ..., calls: _Optional[int] = ..., failures: _Optional[int] = ..., failed: _Optional[float] = ..., instruments: _Optional[_Iterable[str]] = ...) -> None: ...

class ReplaceRequest(_message.Message):
    __slots__ = ("terms",)
    TERMS_FIELD_NUMBER: _ClassVar[int]
    terms: Terms
    def __init__(self, terms: _Optional[_Union[Terms, _Mapping]] = ...) -> None: ...

class ReplaceResponse(_message.Message):
    __slots__ = ("candidate", "moved_from")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    MOVED_FROM_FIELD_NUMBER: _ClassVar[int]
    candidate: Candidate
    moved_from: str
    def __init__(self, candidate: _Optional[_Union[Candidate, _Mapping]] = ..., moved_from: _Optional[str] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("route", "name")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    route: str
    name: str
    def __init__(self, route: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class RestoreResponse(_message.Message):
    __slots__ = ("candidates",)
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    def __init__(self, candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class ObjectsRequest(_message.Message):
    __slots__ = ("route", "name", "limit")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    route: str
    name: str
    limit: int
    def __init__(self, route: _Optional[str] = ..., name: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ObjectsResponse(_message.Message):
    __slots__ = ("total", "objects")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    total: int
    objects: _containers.RepeatedCompositeFieldContainer[Object]
    def __init__(self, total: _Optional[int] = ..., objects: _Optional[_Iterable[_Union[Object, _Mapping]]] = ...) -> None: ...

class Object(_message.Message):
    __slots__ = ("kind", "namespace", "name", "containers")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    namespace: str
    name: str
    containers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., containers: _Optional[_Iterable[str]] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("route", "name")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    route: str
    name: str
    def __init__(self, route: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("forgotten",)
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    forgotten: int
    def __init__(self, forgotten: _Optional[int] = ...) -> None: ...
