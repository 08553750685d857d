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
    __slots__ = ("hosts",)
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedCompositeFieldContainer[Host]
    def __init__(self, hosts: _Optional[_Iterable[_Union[Host, _Mapping]]] = ...) -> None: ...

class Host(_message.Message):
    __slots__ = ("address", "state", "since", "failures", "last_error", "throughput", "rests_until", "ranges_refused", "ranges_refused_until")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    THROUGHPUT_FIELD_NUMBER: _ClassVar[int]
    RESTS_UNTIL_FIELD_NUMBER: _ClassVar[int]
    RANGES_REFUSED_FIELD_NUMBER: _ClassVar[int]
    RANGES_REFUSED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    address: str
    state: str
    since: float
    failures: int
    last_error: str
    throughput: float
    rests_until: float
    ranges_refused: str
    ranges_refused_until: float
    def __init__(self, address: _Optional[str] = ..., state: _Optional[str] = ..., since: _Optional[float] = ..., failures: _Optional[int] = ..., last_error: _Optional[str] = ..., throughput: _Optional[float] = ..., rests_until: _Optional[float] = ..., ranges_refused: _Optional[str] = ..., ranges_refused_until: _Optional[float] = ...) -> None: ...
