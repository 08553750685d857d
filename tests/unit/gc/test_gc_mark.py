"""Marking: which records live, on small graphs. The facts are containerd's, from core/metadata/gc.go and
docs/garbage-collection.md.
"""

from __future__ import annotations

import pytest

from services.metadata.gc.mark import rfc3339
from tests.unit.gc.gc_graphs import HOUR, NOW, SECOND, World, digest, stamp


@pytest.fixture
def world() -> World:
    return World()


# ------------------------------------------------------------------------------------------ roots


def test_nothing_is_nothing(world: World) -> None:
    """An empty store has no dead records and no expiry to wait for."""
    assert world.marking().dead == []
    assert world.marking().wake is None


def test_unreferenced_records_are_dead(world: World) -> None:
    """Content, snapshots and ingests without a root are dead; an active snapshot is no root by itself."""
    world.blob(1)
    world.snapshot("committed")
    world.snapshot("active", kind="active")
    world.snapshot("view", kind="view")
    world.ingest("ref")
    assert world.dead() == {"content 1", "snapshot committed", "snapshot active", "snapshot view", "ingest ref"}


def test_an_image_keeps_its_target_and_its_references(world: World) -> None:
    """An image keeps its target; the target keeps what its gc.ref.content labels name, and so on."""
    world.image("image", 1)
    world.blob(1, {"gc.ref.content.config": digest(2), "gc.ref.content.l.0": digest(3), "gc.ref.content/x": digest(6)})
    world.blob(2, {"gc.ref.snapshot.overlayfs": "top"})
    world.blob(3, {"gc.ref.content": digest(4)})
    world.blob(4)
    world.blob(5)
    world.blob(6)
    world.snapshot("top", "bottom")
    world.snapshot("bottom")
    assert world.dead() == {"content 5"}


def test_labels_that_only_begin_alike_refer_to_nothing(world: World) -> None:
    """gc.ref.contentX is no reference: the type must be followed by nothing, a dot or a slash."""
    world.image("image", 1)
    world.blob(1, {"gc.ref.contentbad": digest(2), "gc.ref.container": "c", "gc.ref.other": digest(2)})
    world.blob(2)
    assert world.dead() == {"content 2"}


def test_a_container_holds_its_snapshot_and_its_labels(world: World) -> None:
    """A container keeps its snapshot with all parents and what its labels name, but not the image that it was made
    from.
    """
    world.container(
        "c", "rw", {"gc.ref.snapshot.overlayfs/extra": "extra", "gc.ref.content.0": digest(1), "gc.ref.image": "old"}
    )
    world.snapshot("rw", "layer", kind="active")
    world.snapshot("layer")
    world.snapshot("extra")
    world.snapshot("rw", snapshotter="native")
    world.blob(1)
    world.image("old", 2, {"gc.expire": stamp(NOW - HOUR)})
    world.blob(2)
    assert world.dead() == {"snapshot native/rw"}


def test_a_sandbox_holds_what_its_labels_name(world: World) -> None:
    """In its own namespace; the collector removes no sandbox."""
    world.sandbox("s", {"gc.ref.snapshot.overlayfs": "layer", "gc.ref.content.0": digest(1)})
    world.sandbox("t", {"gc.ref.content": digest(2)}, ns="other")
    world.snapshot("layer", "parent")
    world.snapshot("parent")
    world.blob(1)
    world.blob(2)
    assert world.dead() == {"content 2"}


def test_roots_by_label(world: World) -> None:
    """gc.root keeps content and snapshots, and what they refer to, whatever its value."""
    world.blob(1, {"gc.root": "2024-01-01T00:00:00Z", "gc.ref.content": digest(2)})
    world.blob(2)
    world.snapshot("kept", "parent", {"gc.root": "x"})
    world.snapshot("parent")
    world.snapshot("other")
    assert world.dead() == {"snapshot other"}


def test_a_lease_keeps_its_resources(world: World) -> None:
    """A lease keeps its content, snapshots, ingests and images, with all that those refer to."""
    world.lease(
        "lease", ("content", digest(1)), ("snapshots/overlayfs", "top"), ("ingests", "held"), ("images", "expired")
    )
    world.blob(1, {"gc.ref.content": digest(2)})
    world.blob(2)
    world.snapshot("top", "bottom", {"gc.ref.content": digest(3)})
    world.snapshot("bottom")
    world.blob(3)
    world.ingest("held", expected=digest(4))
    world.ingest("not held")
    world.blob(4)
    world.image("expired", 5, {"gc.expire": stamp(NOW - HOUR)})
    world.blob(5)
    assert world.dead() == {"ingest not held"}


def test_a_flat_lease_holds_no_more_than_it_says(world: World) -> None:
    """With gc.flat the labels of held records are not followed; parents of snapshots and targets of images still
    are.
    """
    world.lease(
        "lease", ("content", digest(1)), ("snapshots/overlayfs", "top"), ("images", "image"), labels={"gc.flat": "yes"}
    )
    world.blob(1, {"gc.ref.content": digest(2)})
    world.blob(2)
    world.snapshot("top", "bottom", {"gc.ref.content": digest(3)})
    world.snapshot("bottom", labels={"gc.ref.content": digest(7)})
    world.blob(3)
    world.blob(7)
    world.image("image", 4, {"gc.expire": stamp(NOW - HOUR), "gc.ref.content": digest(5)})
    world.blob(4, {"gc.ref.content": digest(6)})
    world.blob(5)
    world.blob(6)
    assert world.dead() == {"content 2", "content 3", "content 5", "content 6", "content 7"}


def test_held_flat_and_referred_to_otherwise(world: World) -> None:
    """If a root refers to a record that a flat lease holds, the record's labels are followed."""
    world.lease("lease", ("content", digest(1)), labels={"gc.flat": "yes"})
    world.image("image", 1)
    world.blob(1, {"gc.ref.content": digest(2)})
    world.blob(2)
    assert world.dead() == set()


def test_leases_expire(world: World) -> None:
    """A lease past its gc.expire is dead, with everything that only it held. A lease that expires later lives, and its
    expiry is the time of the next look.
    """
    world.lease("over", ("content", digest(1)), labels={"gc.expire": stamp(NOW - SECOND)})
    world.lease("later", ("content", digest(2)), labels={"gc.expire": stamp(NOW + HOUR)})
    world.blob(1)
    world.blob(2)
    assert world.dead() == {"lease over", "content 1"}
    wake = world.marking().wake
    assert wake is not None
    assert abs(wake - (NOW + HOUR)) < 1000
    assert world.dead(wake + 1) == {"lease over", "lease later", "content 1", "content 2"}


@pytest.mark.parametrize(
    "value", ["", "tomorrow", "2020-01-01", "2020-01-01 00:00:00Z", "20200101T000000Z", "2020-13-01T00:00:00Z"]
)
def test_an_expiry_that_is_no_time_is_none(world: World, value: str) -> None:
    """A lease or an image whose gc.expire cannot be read is kept."""
    world.lease("lease", ("content", digest(1)), labels={"gc.expire": value})
    world.blob(1)
    world.image("image", 1, {"gc.expire": value})
    assert world.dead() == set()


def test_times_of_labels() -> None:
    """RFC 3339 with zones and fractions of any length, which is what Go's time.Parse reads."""
    assert rfc3339("1970-01-01T00:00:01Z") == SECOND
    assert rfc3339("1970-01-01T01:00:01+01:00") == SECOND
    assert rfc3339("1970-01-01T00:00:00.5Z") == SECOND // 2
    assert rfc3339("1970-01-01T00:00:00.123456789-00:00") == 123456789


def test_images_expire(world: World) -> None:
    """An image past its gc.expire is dead unless something refers to it; the others are roots for ever."""
    world.image("root", 1)
    world.image("over", 2, {"gc.expire": stamp(NOW - SECOND)})
    world.image("over but held", 3, {"gc.expire": stamp(NOW - SECOND)})
    world.image("holder", 1, {"gc.ref.image.x": "over but held"})
    for number in (1, 2, 3):
        world.blob(number)
    assert world.dead() == {"image over", "content 2"}


def test_ingests_live_until_they_expire_or_as_long_as_a_lease_holds_them(world: World) -> None:
    """An ingest has its own expiry or a lease; what it expects lives with it."""
    world.ingest("young", NOW + HOUR, digest(1))
    world.ingest("old", NOW - 1, digest(2))
    world.ingest("leased")
    world.ingest("lease gone")
    world.lease("lease", ("ingests", "leased"))
    world.lease("over", ("ingests", "lease gone"), labels={"gc.expire": stamp(NOW - SECOND)})
    world.blob(1)
    world.blob(2)
    assert world.dead() == {"ingest old", "content 2", "ingest lease gone", "lease over"}
    assert world.marking().wake == NOW + HOUR


def test_open_intents_hold_all_that_they_name(world: World) -> None:
    """While an operation is open neither its parent, its key, its ingest, its digest nor its target is dead."""
    world.snapshot("parent", "grandparent")
    world.snapshot("grandparent")
    world.snapshot("key", kind="active")
    world.snapshot("target")
    world.ingest("ref")
    world.blob(1, {"gc.ref.content": digest(2)})
    world.blob(2)
    world.intent("prepare", key="new", parent="parent", target="target", raw_key="ns/9/new")
    world.intent("commit-snapshot", key="key", name="name", raw_key="ns/8/key", raw_name="ns/9/name")
    world.intent("commit-ingest", ref="ref", raw_ref="ns/7/ref", expected=digest(1))
    assert world.dead() == set()


# ------------------------------------------------------------------------------------------ namespaces


def test_references_stay_in_their_namespace(world: World) -> None:
    """A record keeps only records of its own namespace: the same digest in another is another record."""
    world.image("image", 1)
    world.blob(1, {"gc.ref.content": digest(2)})
    world.blob(2)
    world.blob(1, ns="other")
    world.blob(2, {"gc.root": "x"}, ns="third")
    world.snapshot("s", ns="other")
    world.container("c", "s")
    assert world.dead() == {"other:content 1", "other:snapshot s"}


# ------------------------------------------------------------------------------------------ back references


def test_back_references_attach_a_child_to_its_parent(world: World) -> None:
    """gc.bref.* keeps the thing that has the label as long as the thing that it names."""
    world.image("image", 1)
    world.blob(1)
    world.container("c", "rw")
    world.snapshot("rw", kind="active")
    world.blob(10, {"gc.bref.image": "image"})
    world.blob(11, {"gc.bref.content.x": digest(1)})
    world.blob(12, {"gc.bref.container": "c"})
    world.blob(13, {"gc.bref.snapshot.overlayfs": "rw"})
    world.blob(14, {"gc.bref.snapshot.overlayfs/7": "rw"})
    world.blob(15, {"gc.bref.snapshot.native": "rw"})
    world.blob(16, {"gc.bref.image": "unknown"})
    world.blob(17, {"gc.bref.contentbad": digest(1)})
    world.snapshot("aside", labels={"gc.bref.content": digest(10)})
    world.image("old", 1, {"gc.bref.image": "image", "gc.expire": stamp(NOW - HOUR)})
    assert world.dead() == {"content 15", "content 16", "content 17"}


def test_back_references_do_not_reach_beyond_a_flat_hold(world: World) -> None:
    """Back references of records that a flat lease holds are not followed either."""
    world.lease("lease", ("content", digest(1)), labels={"gc.flat": "x"})
    world.blob(1)
    world.blob(2, {"gc.bref.content": digest(1)})
    assert world.dead() == {"content 2"}


def test_a_ring_without_a_root_is_dead(world: World) -> None:
    """Records that only refer to each other are dead. A ring with a root lives, and following it ends."""
    world.blob(1, {"gc.ref.content": digest(2)})
    world.blob(2, {"gc.ref.content": digest(1)})
    world.blob(3, {"gc.ref.content": digest(4), "gc.root": "x"})
    world.blob(4, {"gc.ref.content": digest(3)})
    assert world.dead() == {"content 1", "content 2"}


# ------------------------------------------------------------------------------------------ conditions


def test_conditions_hold_for_their_time(world: World) -> None:
    """gc.cond.snapshot keeps a snapshot whose last use is less (or more) than the given time ago, as long as the record
    with the label lives. The end of that time is reported.
    """
    world.blob(
        1,
        {
            "gc.root": "x",
            "gc.cond.snapshot.overlayfs": "usedat<2h|young",
            "gc.cond.snapshot.overlayfs/b": "usedat<2h|old",
            "gc.cond.snapshot.overlayfs/c": "usedat>2h|old enough",
            "gc.cond.snapshot.overlayfs/d": "usedat<=9h|young but equal",
            "gc.cond.snapshot.overlayfs/e": "unknown<1h,usedat<9h|any of them",
            "gc.cond.snapshot.overlayfs/f": "usedat<9h|unused",
        },
    )
    world.blob(2, {"gc.cond.snapshot.overlayfs": "usedat<9h|of a dead one"})
    for name, hours in (
        ("young", 1),
        ("old", 3),
        ("old enough", 3),
        ("young but equal", 1),
        ("any of them", 3),
        ("of a dead one", 1),
    ):
        world.snapshot(name, labels={"gc.cond.value-usedat": stamp(NOW - hours * HOUR)})
    world.snapshot("unused")
    assert world.dead() == {
        "content 2",
        "snapshot old",
        "snapshot young but equal",
        "snapshot of a dead one",
        "snapshot unused",
    }
    wake = world.marking().wake
    assert wake is not None
    assert abs(wake - (NOW + HOUR)) < 1000, "when 'young' is no longer that"


def test_an_expired_lease_frees_as_if_it_were_not_there(world: World) -> None:
    """The dead records are exactly those that would be dead without the expired lease, and the lease itself."""
    for number in range(6):
        world.blob(number, {"gc.ref.content": digest(number + 1)})
    world.image("image", 3)
    without = world.dead()
    world.lease("over", *(("content", digest(n)) for n in range(6)), labels={"gc.expire": stamp(NOW - SECOND)})
    assert world.dead() == {*without, "lease over"} == {"content 0", "content 1", "content 2", "lease over"}
