from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListResponse(_message.Message):
    __slots__ = ("snapshotters",)
    SNAPSHOTTERS_FIELD_NUMBER: _ClassVar[int]
    snapshotters: _containers.RepeatedCompositeFieldContainer[Snapshotter]
    def __init__(self, snapshotters: _Optional[_Iterable[_Union[Snapshotter, _Mapping]]] = ...) -> None: ...

class Snapshotter(_message.Message):
    __slots__ = ("name", "platforms", "exports", "capabilities", "trouble", "broken")
    class ExportsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    EXPORTS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    platforms: _containers.RepeatedScalarFieldContainer[str]
    exports: _containers.ScalarMap[str, str]
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    trouble: str
    broken: bool
    def __init__(self, name: _Optional[str] = ..., platforms: _Optional[_Iterable[str]] = ..., exports: _Optional[_Mapping[str, str]] = ..., capabilities: _Optional[_Iterable[str]] = ..., trouble: _Optional[str] = ..., broken: _Optional[bool] = ...) -> None: ...
