from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRequest(_message.Message):
    __slots__ = ("since", "operation", "image", "namespace", "failed", "longer", "limit", "operations")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LONGER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    since: int
    operation: str
    image: str
    namespace: str
    failed: bool
    longer: float
    limit: int
    operations: bool
    def __init__(self, since: _Optional[int] = ..., operation: _Optional[str] = ..., image: _Optional[str] = ..., namespace: _Optional[str] = ..., failed: _Optional[bool] = ..., longer: _Optional[float] = ..., limit: _Optional[int] = ..., operations: _Optional[bool] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("traces",)
    TRACES_FIELD_NUMBER: _ClassVar[int]
    traces: _containers.RepeatedCompositeFieldContainer[Summary]
    def __init__(self, traces: _Optional[_Iterable[_Union[Summary, _Mapping]]] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("id", "name", "operation", "namespace", "image", "outcome", "start", "end", "spans", "errors", "attributes")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    operation: str
    namespace: str
    image: str
    outcome: str
    start: int
    end: int
    spans: int
    errors: int
    attributes: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., operation: _Optional[str] = ..., namespace: _Optional[str] = ..., image: _Optional[str] = ..., outcome: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., spans: _Optional[int] = ..., errors: _Optional[int] = ..., attributes: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class JudgeRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class JudgeResponse(_message.Message):
    __slots__ = ("sentence", "advice", "causes")
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    CAUSES_FIELD_NUMBER: _ClassVar[int]
    sentence: str
    advice: str
    causes: _containers.RepeatedCompositeFieldContainer[Cause]
    def __init__(self, sentence: _Optional[str] = ..., advice: _Optional[str] = ..., causes: _Optional[_Iterable[_Union[Cause, _Mapping]]] = ...) -> None: ...

class Cause(_message.Message):
    __slots__ = ("kind", "part", "seconds", "what")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    part: str
    seconds: float
    what: str
    def __init__(self, kind: _Optional[str] = ..., part: _Optional[str] = ..., seconds: _Optional[float] = ..., what: _Optional[str] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LiveRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LiveResponse(_message.Message):
    __slots__ = ("data", "now")
    DATA_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    now: int
    def __init__(self, data: _Optional[bytes] = ..., now: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("data", "service", "lifetime", "dropped")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    service: str
    lifetime: float
    dropped: int
    def __init__(self, data: _Optional[bytes] = ..., service: _Optional[str] = ..., lifetime: _Optional[float] = ..., dropped: _Optional[int] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FiguresRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FiguresResponse(_message.Message):
    __slots__ = ("traces", "spans", "bytes", "oldest", "dropped")
    TRACES_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    traces: int
    spans: int
    bytes: int
    oldest: int
    dropped: int
    def __init__(self, traces: _Optional[int] = ..., spans: _Optional[int] = ..., bytes: _Optional[int] = ..., oldest: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...
