"""metadata's messages as the values of :mod:`gateway.store`, and back."""

from __future__ import annotations

from api.splitd.records.v1 import records_pb2 as pb
from gateway.store import Blob, Ingest, Intent, Object, Objects, Outcome, Snapshot, Updated
from services.kit.timestamps import time_from_pb
from services.snapshots.convert import info_from_pb, info_to_pb


def blob_from_pb(message: pb.Blob) -> Blob:
    return Blob(message.digest, message.size, message.backend)


def snapshot_from_pb(message: pb.Snapshot) -> Snapshot:
    return Snapshot(message.raw_key, message.backend)


def ingest_from_pb(message: pb.Ingest) -> Ingest:
    return Ingest(
        ref=message.ref,
        raw_ref=message.raw_ref,
        expected=message.expected,
        shared=message.shared,
        size=message.size,
        started=time_from_pb(message.started_at),
        backend=message.backend,
    )


def intent_from_pb(message: pb.Intent) -> Intent:
    return Intent(
        id=message.id,
        backend=message.backend,
        raw_ref=message.raw_ref,
        raw_key=message.raw_key,
        raw_parent=message.raw_parent,
        raw_name=message.raw_name,
        raw_labels=dict(message.raw_labels),
        target=message.target,
    )


def updated_from_pb(message: pb.UpdatedSnapshot) -> Updated:
    return Updated(
        info_from_pb(message.info),
        message.raw_key,
        dict(message.raw_labels),
        tuple(message.raw_mask.paths),
        message.backend,
    )


def objects_from_pb(message: pb.Objects) -> Objects:
    return Objects(
        message.blobs,
        message.ingests,
        message.snapshots,
        message.intents,
        message.uncollected,
        [Object(each.namespace, each.kind, each.name, tuple(each.containers)) for each in message.some],
    )


def finish_to_pb(intent: Intent, outcome: Outcome) -> pb.FinishRequest:
    return pb.FinishRequest(
        intent=intent.id,
        digest=outcome.digest,
        size=outcome.size,
        adopted=[info_to_pb(info) for info in outcome.adopted],
        later=outcome.later,
    )
