import datetime

from google.protobuf import any_pb2 as _any_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from api.containerd.services.images.v1 import images_pb2 as _images_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2 as _snapshots_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectRequest(_message.Message):
    __slots__ = ("incarnation", "content", "snapshotters", "open", "candidates")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    content: str
    snapshotters: _containers.RepeatedScalarFieldContainer[str]
    open: OpenIntents
    candidates: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, incarnation: _Optional[str] = ..., content: _Optional[str] = ..., snapshotters: _Optional[_Iterable[str]] = ..., open: _Optional[_Union[OpenIntents, _Mapping]] = ..., candidates: _Optional[_Iterable[str]] = ...) -> None: ...

class OpenIntents(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("store_id",)
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    store_id: str
    def __init__(self, store_id: _Optional[str] = ...) -> None: ...

class OpenIngestRequest(_message.Message):
    __slots__ = ("incarnation", "ref", "total", "expected", "backend")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    ref: str
    total: int
    expected: str
    backend: str
    def __init__(self, incarnation: _Optional[str] = ..., ref: _Optional[str] = ..., total: _Optional[int] = ..., expected: _Optional[str] = ..., backend: _Optional[str] = ...) -> None: ...

class GetIngestRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class Ingest(_message.Message):
    __slots__ = ("ref", "raw_ref", "backend", "expected", "shared", "size", "started_at")
    REF_FIELD_NUMBER: _ClassVar[int]
    RAW_REF_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ref: str
    raw_ref: str
    backend: str
    expected: str
    shared: bool
    size: int
    started_at: _timestamp_pb2.Timestamp
    def __init__(self, ref: _Optional[str] = ..., raw_ref: _Optional[str] = ..., backend: _Optional[str] = ..., expected: _Optional[str] = ..., shared: _Optional[bool] = ..., size: _Optional[int] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListIngestsResponse(_message.Message):
    __slots__ = ("ingests",)
    INGESTS_FIELD_NUMBER: _ClassVar[int]
    ingests: _containers.RepeatedCompositeFieldContainer[Ingest]
    def __init__(self, ingests: _Optional[_Iterable[_Union[Ingest, _Mapping]]] = ...) -> None: ...

class BeginCommitIngestRequest(_message.Message):
    __slots__ = ("incarnation", "ref", "size", "expected", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    ref: str
    size: int
    expected: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, incarnation: _Optional[str] = ..., ref: _Optional[str] = ..., size: _Optional[int] = ..., expected: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ResolveBlobRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("digest", "size", "backend")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size: int
    backend: str
    def __init__(self, digest: _Optional[str] = ..., size: _Optional[int] = ..., backend: _Optional[str] = ...) -> None: ...

class BeginSnapshotRequest(_message.Message):
    __slots__ = ("incarnation", "snapshotter", "key", "parent", "view", "labels", "backend")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    snapshotter: str
    key: str
    parent: str
    view: bool
    labels: _containers.ScalarMap[str, str]
    backend: str
    def __init__(self, incarnation: _Optional[str] = ..., snapshotter: _Optional[str] = ..., key: _Optional[str] = ..., parent: _Optional[str] = ..., view: _Optional[bool] = ..., labels: _Optional[_Mapping[str, str]] = ..., backend: _Optional[str] = ...) -> None: ...

class BeginCommitSnapshotRequest(_message.Message):
    __slots__ = ("incarnation", "snapshotter", "name", "key", "labels", "parent")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    snapshotter: str
    name: str
    key: str
    labels: _containers.ScalarMap[str, str]
    parent: str
    def __init__(self, incarnation: _Optional[str] = ..., snapshotter: _Optional[str] = ..., name: _Optional[str] = ..., key: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., parent: _Optional[str] = ...) -> None: ...

class ResolveSnapshotRequest(_message.Message):
    __slots__ = ("snapshotter", "key")
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    snapshotter: str
    key: str
    def __init__(self, snapshotter: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("raw_key", "backend")
    RAW_KEY_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    raw_key: str
    backend: str
    def __init__(self, raw_key: _Optional[str] = ..., backend: _Optional[str] = ...) -> None: ...

class UpdatedSnapshot(_message.Message):
    __slots__ = ("info", "raw_key", "backend", "raw_labels", "raw_mask")
    class RawLabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INFO_FIELD_NUMBER: _ClassVar[int]
    RAW_KEY_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RAW_LABELS_FIELD_NUMBER: _ClassVar[int]
    RAW_MASK_FIELD_NUMBER: _ClassVar[int]
    info: _snapshots_pb2.Info
    raw_key: str
    backend: str
    raw_labels: _containers.ScalarMap[str, str]
    raw_mask: _field_mask_pb2.FieldMask
    def __init__(self, info: _Optional[_Union[_snapshots_pb2.Info, _Mapping]] = ..., raw_key: _Optional[str] = ..., backend: _Optional[str] = ..., raw_labels: _Optional[_Mapping[str, str]] = ..., raw_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class Intent(_message.Message):
    __slots__ = ("id", "backend", "raw_ref", "raw_key", "raw_parent", "raw_name", "raw_labels", "target", "finished")
    class RawLabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RAW_REF_FIELD_NUMBER: _ClassVar[int]
    RAW_KEY_FIELD_NUMBER: _ClassVar[int]
    RAW_PARENT_FIELD_NUMBER: _ClassVar[int]
    RAW_NAME_FIELD_NUMBER: _ClassVar[int]
    RAW_LABELS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    id: str
    backend: str
    raw_ref: str
    raw_key: str
    raw_parent: str
    raw_name: str
    raw_labels: _containers.ScalarMap[str, str]
    target: str
    finished: Finished
    def __init__(self, id: _Optional[str] = ..., backend: _Optional[str] = ..., raw_ref: _Optional[str] = ..., raw_key: _Optional[str] = ..., raw_parent: _Optional[str] = ..., raw_name: _Optional[str] = ..., raw_labels: _Optional[_Mapping[str, str]] = ..., target: _Optional[str] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("intent", "digest", "size", "adopted", "later")
    INTENT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    LATER_FIELD_NUMBER: _ClassVar[int]
    intent: str
    digest: str
    size: int
    adopted: _containers.RepeatedCompositeFieldContainer[_snapshots_pb2.Info]
    later: bool
    def __init__(self, intent: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., adopted: _Optional[_Iterable[_Union[_snapshots_pb2.Info, _Mapping]]] = ..., later: _Optional[bool] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("events", "digest", "size")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    digest: str
    size: int
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("namespace", "topic", "event")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    topic: str
    event: _any_pb2.Any
    def __init__(self, namespace: _Optional[str] = ..., topic: _Optional[str] = ..., event: _Optional[_Union[_any_pb2.Any, _Mapping]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("intent",)
    INTENT_FIELD_NUMBER: _ClassVar[int]
    intent: str
    def __init__(self, intent: _Optional[str] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("reason", "since")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    since: int
    def __init__(self, reason: _Optional[str] = ..., since: _Optional[int] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("store", "revision", "in_step", "away", "reads", "why")
    STORE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    IN_STEP_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    store: str
    revision: int
    in_step: bool
    away: float
    reads: float
    why: str
    def __init__(self, store: _Optional[str] = ..., revision: _Optional[int] = ..., in_step: _Optional[bool] = ..., away: _Optional[float] = ..., reads: _Optional[float] = ..., why: _Optional[str] = ...) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: _Optional[bool] = ...) -> None: ...

class Collected(_message.Message):
    __slots__ = ("removed", "failed", "seconds")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedScalarFieldContainer[str]
    failed: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, removed: _Optional[_Iterable[str]] = ..., failed: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class ListObjectsRequest(_message.Message):
    __slots__ = ("backend", "limit")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    backend: str
    limit: int
    def __init__(self, backend: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ForgetObjectsRequest(_message.Message):
    __slots__ = ("backend",)
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    backend: str
    def __init__(self, backend: _Optional[str] = ...) -> None: ...

class Objects(_message.Message):
    __slots__ = ("blobs", "ingests", "snapshots", "intents", "uncollected", "some")
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    INGESTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    INTENTS_FIELD_NUMBER: _ClassVar[int]
    UNCOLLECTED_FIELD_NUMBER: _ClassVar[int]
    SOME_FIELD_NUMBER: _ClassVar[int]
    blobs: int
    ingests: int
    snapshots: int
    intents: int
    uncollected: int
    some: _containers.RepeatedCompositeFieldContainer[Object]
    def __init__(self, blobs: _Optional[int] = ..., ingests: _Optional[int] = ..., snapshots: _Optional[int] = ..., intents: _Optional[int] = ..., uncollected: _Optional[int] = ..., some: _Optional[_Iterable[_Union[Object, _Mapping]]] = ...) -> None: ...

class Object(_message.Message):
    __slots__ = ("namespace", "kind", "name", "snapshotter", "containers")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    kind: str
    name: str
    snapshotter: str
    containers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, namespace: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., snapshotter: _Optional[str] = ..., containers: _Optional[_Iterable[str]] = ...) -> None: ...
