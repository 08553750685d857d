"""The order in which snapshots are removed."""

from __future__ import annotations

from services.metadata.gc.plan import Uses, victims
from services.metadata.gc.raw import ListedSnapshot, Listing
from tests.unit.gc.gc_graphs import OVERLAY

NOTHING = Uses(frozenset(), frozenset(), every_blob=False)


class Counted(dict[str, ListedSnapshot]):
    """A mapping of snapshots that counts lookups."""

    looked = 0

    def __getitem__(self, key: str) -> ListedSnapshot:
        self.looked += 1
        return super().__getitem__(key)


def order(parents: dict[str, str]) -> tuple[list[str], int]:
    """Return the order of removal, and how often a parent was looked up."""
    snapshots = Counted((key, ListedSnapshot(key, parent)) for key, parent in parents.items())
    found = [raw.name for raw in victims(Listing(OVERLAY, snapshots=snapshots), NOTHING, frozenset(), own=True)]
    return found, snapshots.looked


def test_children_go_before_their_parents_however_long_the_chain() -> None:
    """Each parent is looked up once."""
    chain = {f"{n:04}": f"{n - 1:04}" if n else "" for n in range(3000)}
    found, looked = order(chain)
    assert found == sorted(chain, reverse=True)
    assert looked <= 2 * len(chain)


def test_a_tree_goes_from_its_leaves() -> None:
    """The order of the input does not matter; a parent that is not listed counts as none."""
    parents = {"a": "", "b": "a", "c": "b", "d": "b", "e": "gone", "f": "e"}
    for keys in (sorted(parents), sorted(parents, reverse=True)):
        found, _ = order({key: parents[key] for key in keys})
        assert all(found.index(child) < found.index(parent) for child, parent in parents.items() if parent in parents)
        assert found == ["c", "d", "b", "f", "a", "e"]


def test_parents_that_go_round_in_a_circle_end() -> None:
    """Our own snapshots have no cycles, but a foreign snapshotter may report one."""
    found, _ = order({"a": "b", "b": "c", "c": "a"})
    assert sorted(found) == ["a", "b", "c"]
