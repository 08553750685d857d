"""Copies are made to a candidate in the right order and under names of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from api.containerd.services.content.v1 import content_pb2 as content
from api.containerd.services.snapshots.v1 import snapshots_pb2 as snapshots
from api.containerd.types.mount_pb2 import Mount
from api.splitd.localfiles.v1 import localfiles_pb2
from api.splitd.removals.v1 import removals_pb2
from services.kit import errors
from services.shadows import replay
from services.shadows.methods_convert import METHODS, REMOVED, STORED
from services.shadows.replay import Replay
from services.shadows.store import Copy, MethodReport, Service

SNAPSHOTS, CONTENT = "/containerd.services.snapshots.v1.Snapshots/", "/containerd.services.content.v1.Content/"
PREFIX = "shadow-1/"
Handler = Callable[[str, Any], Any]


class Fake:
    """A service that answers by ``handler``: a message, several, or an error."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.handler = handler or (lambda _path, _request: [])
        self.asked: list[tuple[str, Any]] = []
        self.written: list[tuple[str, int, str]] = []
        self.gate: asyncio.Event | None = None

    async def call(self, path: str, requests: Sequence[bytes]) -> Sequence[bytes]:
        request: Any = METHODS[path].request(requests[0])
        self.asked.append((path.rpartition("/")[2], request))
        if self.gate is not None:
            await self.gate.wait()
        answer = self.handler(path, request)
        if isinstance(answer, Exception):
            raise answer
        return [each.SerializeToString() for each in (answer if isinstance(answer, list) else [answer])]

    async def copied(self, digest: str, size: int, ref: str, source: Service) -> Sequence[bytes]:
        self.written.append((digest, size, ref))
        answer = content.WriteContentResponse(action=content.COMMIT, digest=digest, offset=size)
        return [answer.SerializeToString()]


def copy(path: str, request: Any, *answers: Any, code: str = "OK") -> Copy:
    live = [each.SerializeToString() for each in answers] if answers or code != "OK" else None
    return Copy(path, [request.SerializeToString()], code, live, 0.001 if live is not None else 0.0, "trace")


def prepared(key: str, parent: str = "", root: str = "/ours") -> Copy:
    request = snapshots.PrepareSnapshotRequest(snapshotter="overlayfs", key=key, parent=parent)
    return copy(f"{SNAPSHOTS}Prepare", request, snapshots.PrepareSnapshotResponse(mounts=[mount(root)]))


def mount(root: str) -> Mount:
    return Mount(type="bind", source=f"{root}/1/fs", options=["rw", "rbind"])


def mounted(key: str) -> Copy:
    return copy(f"{SNAPSHOTS}Mounts", snapshots.MountsRequest(key=key), snapshots.MountsResponse(mounts=[mount("/o")]))


def a_snapshotter(path: str, _request: Any) -> Any:
    method = METHODS[path]
    if path.endswith(("Prepare", "Mounts")):
        answer = method.answers([b""])[0]
        answer.mounts.append(mount("/theirs"))  # type: ignore[attr-defined]
        return answer
    return method.answers([b""])[0]


async def replayed(*copies: Copy, ours: Fake, candidate: Fake, prefix: str = PREFIX) -> dict[str, MethodReport]:
    made = Replay(ours, candidate, prefix=prefix)
    for each in copies:
        await made.take(each)
    await made.idle()
    return {report.method: report for report in made.report()}


async def test_writes_go_to_names_of_the_candidates_own() -> None:
    """Where the candidate keeps its files makes no difference."""
    ours, candidate = Fake(a_snapshotter), Fake(a_snapshotter)
    commit = snapshots.CommitSnapshotRequest(name="ns/2/n", key="ns/1/k")
    report = await replayed(
        prepared("ns/1/k"),
        copy(f"{SNAPSHOTS}Commit", commit, snapshots.MountsResponse()),
        prepared("ns/3/child", "ns/2/n"),
        mounted("ns/3/child"),
        ours=ours,
        candidate=candidate,
    )
    assert [name for name, _ in candidate.asked] == ["Prepare", "Commit", "Prepare", "Mounts"]
    assert candidate.asked[1][1].name == f"{PREFIX}ns/2/n"
    assert (candidate.asked[2][1].key, candidate.asked[2][1].parent) == (f"{PREFIX}ns/3/child", f"{PREFIX}ns/2/n")
    assert [name for name, _ in ours.asked] == ["Mounts"]
    assert ours.asked[0][1].key == "ns/3/child"
    assert {name: (each.calls, each.same) for name, each in report.items()} == {
        "Snapshots/Prepare": (2, 2),
        "Snapshots/Commit": (1, 1),
        "Snapshots/Mounts": (1, 1),
    }


async def test_a_difference_is_found() -> None:
    def read_only(path: str, request: Any) -> Any:
        answer = a_snapshotter(path, request)
        answer.mounts[0].options[0] = "ro"
        return answer

    report = await replayed(prepared("ns/1/k"), ours=Fake(a_snapshotter), candidate=Fake(read_only))
    (found,) = report["Snapshots/Prepare"].differences
    assert found.name == "mounts[].options[]"
    (example,) = found.examples
    assert (example.ours, example.candidate, example.where, example.trace) == (
        "rw",
        "ro",
        "mounts[0].options[1]",
        "trace",
    )
    assert "key=ns/1/k" in example.request


async def test_what_is_older_than_the_shadow_is_skipped() -> None:
    candidate = Fake(a_snapshotter)
    report = await replayed(
        mounted("ns/0/old"), prepared("ns/1/k", "ns/0/old"), ours=Fake(a_snapshotter), candidate=candidate
    )
    assert candidate.asked == []
    assert report["Snapshots/Mounts"].skipped == report["Snapshots/Prepare"].skipped == {replay.OLDER: 1}


async def test_a_candidate_without_a_store_of_its_own_gets_reads_only() -> None:
    candidate = Fake(a_snapshotter)
    report = await replayed(
        prepared("ns/1/k"), mounted("ns/0/old"), ours=Fake(a_snapshotter), candidate=candidate, prefix=""
    )
    assert [(name, request.key) for name, request in candidate.asked] == [("Mounts", "ns/0/old")]
    assert report["Snapshots/Prepare"].skipped == {replay.READ_ONLY: 1}
    assert report["Snapshots/Mounts"].same == 1


async def test_errors_are_answers() -> None:
    def gone(_path: str, _request: Any) -> Any:
        return errors.NotFound("snapshot shadow-1/ns/1/k")

    missing = copy(f"{SNAPSHOTS}Prepare", snapshots.PrepareSnapshotRequest(key="k"), code="ALREADY_EXISTS")
    (found,) = (await replayed(missing, ours=Fake(), candidate=Fake(gone)))["Snapshots/Prepare"].differences
    assert (found.name, found.examples[0].ours, found.examples[0].candidate) == ("code", "ALREADY_EXISTS", "NOT_FOUND")


async def test_a_candidate_that_is_away_differs_in_nothing() -> None:
    """What it missed is older than what it will be asked next."""
    away = Fake(lambda _path, _request: errors.Disconnected("gone"))
    report = await replayed(prepared("ns/1/k"), mounted("ns/1/k"), ours=Fake(a_snapshotter), candidate=away)
    assert report["Snapshots/Prepare"].skipped == {replay.AWAY: 1}
    assert report["Snapshots/Mounts"].skipped == {replay.OLDER: 1}
    assert not any(each.differences for each in report.values())


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"])
async def test_a_call_that_ours_did_not_answer_is_not_compared(code: str) -> None:
    candidate = Fake(a_snapshotter)
    lost = copy(f"{SNAPSHOTS}Mounts", snapshots.MountsRequest(key="k"), code=code)
    report = await replayed(lost, ours=Fake(), candidate=candidate, prefix="")
    assert report["Snapshots/Mounts"].skipped == {replay.LOST: 1}
    assert candidate.asked == []


async def test_a_blob_that_came_by_a_file_is_written_and_then_read() -> None:
    """A Read is asked of both, since its answers are not kept."""
    data = content.ReadContentResponse(data=b"abc")
    ours, candidate = Fake(lambda _path, _request: data), Fake(lambda _path, _request: data)
    stored = localfiles_pb2.CommitRequest(ref="ns/1/r", size=3, digest="sha256:abc")
    read = content.ReadContentRequest(digest="sha256:abc")
    report = await replayed(
        copy(STORED, stored, localfiles_pb2.CommitResponse()),
        copy(f"{CONTENT}Read", read),
        copy(f"{CONTENT}Read", content.ReadContentRequest(digest="sha256:old")),
        ours=ours,
        candidate=candidate,
    )
    assert candidate.written == [("sha256:abc", 3, f"{PREFIX}ns/1/r")]
    assert [len(each.asked) for each in (ours, candidate)] == [1, 1]
    assert report["Content/Write"].same == 1
    assert (report["Content/Read"].same, report["Content/Read"].skipped) == (1, {replay.OLDER: 1})
    assert report["Content/Read"].ours.count == 1


async def test_many_removals_are_copied_one_by_one() -> None:
    candidate = Fake(a_snapshotter)
    many = removals_pb2.RemoveRequest(things=[removals_pb2.Thing(kind="snapshot", name="ns/1/k")])
    report = await replayed(
        prepared("ns/1/k"), copy(REMOVED, many), mounted("ns/1/k"), ours=Fake(a_snapshotter), candidate=candidate
    )
    assert [(name, request.key) for name, request in candidate.asked] == [
        ("Prepare", f"{PREFIX}ns/1/k"),
        ("Remove", f"{PREFIX}ns/1/k"),
    ]
    assert report["Snapshots/Mounts"].skipped == {replay.OLDER: 1}


async def test_a_full_queue_is_not_read_on() -> None:
    """Only so many copies are made at once; the caller waits with the next."""
    candidate = Fake(a_snapshotter)
    candidate.gate = asyncio.Event()
    made = Replay(Fake(a_snapshotter), candidate, prefix=PREFIX)
    for number in range(replay.AT_ONCE):
        await made.take(prepared(f"ns/{number}/k"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await made.take(prepared("ns/99/k"))
    candidate.gate.set()
    await made.idle()
    assert made.report()[0].same == replay.AT_ONCE
    await made.close()


async def test_copies_of_one_object_keep_their_order() -> None:
    candidate = Fake(a_snapshotter)
    copies = [prepared("ns/1/k"), *[mounted("ns/1/k")] * 5, prepared("ns/2/k")]
    await replayed(*copies, ours=Fake(a_snapshotter), candidate=candidate)
    of_first = [name for name, request in candidate.asked if request.key == f"{PREFIX}ns/1/k"]
    assert of_first == ["Prepare", *["Mounts"] * 5]


async def test_a_request_that_cannot_be_read_is_skipped() -> None:
    """Ours has refused it. The next copies are made."""
    odd = Copy(f"{SNAPSHOTS}Mounts", [b"\xff\xff"], "INVALID_ARGUMENT")
    report = await replayed(odd, prepared("ns/1/k"), ours=Fake(a_snapshotter), candidate=Fake(a_snapshotter))
    assert report["Snapshots/Mounts"].skipped == {replay.UNREADABLE: 1}
    assert report["Snapshots/Prepare"].same == 1
