"""What is done to a fleet in the middle of a pull, and what each node then owes: the image, or a clear error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from deploy.samples import Image
from tests.fleets.network import Host
from tests.fleets.nodes import Fleet, FleetMember, size_of
from tests.support import eventually

SECONDS = 150.0
"""Within which each pull ends, well or badly: a few times the longest patience of a node, for a registry that is cut
off, on a machine that is busy.
"""

Done = Callable[[Fleet, Sequence[FleetMember]], AbstractContextManager[object]]


@dataclass(frozen=True)
class Harm:
    """``done`` is done to a fleet; the first of the nodes has begun to fetch the image. At the end of the context it is
    undone. ``excused``: the nodes, by their place, whose pull may fail, with a clear error.
    """

    name: str
    done: Done
    excused: tuple[int, ...] = ()


def killed(service: str, place: int, excused: tuple[int, ...] = ()) -> Harm:
    """A service of a node is killed; supervisord starts it again."""

    @contextlib.contextmanager
    def done(fleet: Fleet, nodes: Sequence[FleetMember]) -> Iterator[None]:
        nodes[place].kill(service)
        yield
        nodes[place].wait_healthy(60)

    return Harm(f"{service} of n{place + 1} is killed", done, excused)


def dead(place: int) -> Harm:
    """A node loses its power."""

    @contextlib.contextmanager
    def done(fleet: Fleet, nodes: Sequence[FleetMember]) -> Iterator[None]:
        nodes[place].die()
        yield
        nodes[place].up()

    return Harm(f"n{place + 1} dies", done, (place,))


def member_killed(number: int) -> Harm:
    """A member of etcd is killed."""

    @contextlib.contextmanager
    def done(fleet: Fleet, nodes: Sequence[FleetMember]) -> Iterator[None]:
        fleet.etcd.members[number].kill()
        yield
        fleet.etcd.heal()

    return Harm(f"etcd{number} is killed", done)


def parted(one: str, other: str, excused: tuple[int, ...] = ()) -> Harm:
    """Two hosts do not hear each other any more."""

    def done(fleet: Fleet, nodes: Sequence[FleetMember]) -> AbstractContextManager[None]:
        return fleet.network.parted(host(fleet, one), host(fleet, other))

    return Harm(f"{one} and {other} are parted", done, excused)


def host(fleet: Fleet, name: str) -> Host:
    """A host by its name."""
    return fleet.network.hosts[name]


def cuts() -> Iterator[Harm]:
    """The network is cut between any two. A node that the registry is cut off from may fail: it cannot know what the
    others are about to have.
    """
    names = ["n1", "n2", "n3", "registry", "etcd0", "etcd1", "etcd2"]
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            excused = (names.index(one),) if other == "registry" else ()
            yield parted(one, other, excused)


ALL = [
    *(killed("fleet", place) for place in range(3)),
    *(killed("images", place, (place,)) for place in range(3)),
    *(killed("gateway", place, (place,)) for place in range(3)),
    *(dead(place) for place in range(3)),
    *(member_killed(number) for number in range(3)),
    *cuts(),
]


def suffered(fleet: Fleet, box: Image, name: str, harms: Sequence[Harm]) -> None:
    """Three nodes pull an image, and all harms are done at once in the middle of that. Each pull ends; whose node is
    not excused has the image; who has not, has it after a second pull. No blob of any node has a wrong byte.
    """
    nodes = list(fleet.nodes.values())
    reference = fleet.registry.push(box, name)
    before = fleet.registry.host.sent()
    first = nodes[0].begin(reference)
    eventually(lambda: fleet.registry.host.sent() - before > size_of(box) // 10, "the first pull does not begin", 60)
    begun = [first, *(node.begin(reference) for node in nodes[1:])]
    eventually(lambda: fleet.registry.host.sent() - before > size_of(box) // 3, "the pulls do not go on", 60)
    with contextlib.ExitStack() as stack:
        for harm in harms:
            stack.enter_context(harm.done(fleet, nodes))
        said = [pull.end(SECONDS) for pull in begun]
        fleet.check()
    excused = {place for harm in harms for place in harm.excused}
    for place, (node, words) in enumerate(zip(nodes, said, strict=True)):
        if not words:
            assert node.has(box), f"{node.host.name} says that it has the image"
            continue
        assert place in excused, f"{node.host.name}: {words[-2000:]}\n{node.logs()[-4000:]}"
        assert begun[place].killed or clear(words), f"{node.host.name}: {words}"
        assert node.begin(reference).end(SECONDS) == ""
        assert node.has(box)
    fleet.check()


def clear(words: str) -> bool:
    """Whether a pull that failed said in one line what the matter was."""
    return words.startswith("splitd: ") and len(words.strip().splitlines()) == 1 and "Traceback" not in words
