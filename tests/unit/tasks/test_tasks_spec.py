"""Reading of a container's OCI spec."""

from __future__ import annotations

import json

import pytest

from services.kit import errors
from services.tasks import spec as specs
from services.tasks.spec import own_pids, remapped_gid, uses_id_mapped_mounts

DEEP = b'{"a":' * 3000 + b"1" + b"}" * 3000
"""A client may put this into a field that is not read."""


@pytest.mark.parametrize(
    ("spec", "uses"),
    [
        (b"{}", False),
        (b'{"mounts": [{"options": ["rbind"]}], "linux": {"uidMappings": []}}', False),
        (b'{"mounts": [{"options": ["rbind", "idmap"]}]}', True),
        (b'{"mounts": [{"uidMappings": [{"hostID": 1}]}]}', True),
        (b'{"process": {"args": ["idmap"]}}', False),
        (b'{"mounts": [{"UIDMappings": []}]}', True),
        (b'{"mounts": [{"uidMappings": null}]}', False),
        (b'{"moun\\u0074s": [{"\\u0075idMappings": []}]}', True),
        ('{"mounts": [{"uidMapping\u017f": []}]}'.encode(), True),
        (b'{"x":' + DEEP + b',"mounts": [{"options": ["ridmap"]}]}', True),
    ],
)
def test_id_mapped_mounts_are_seen(spec: bytes, uses: bool) -> None:
    """They are recognised by an option or by mappings of a mount, not by the word elsewhere or the user namespace's
    mappings; in each spelling that the runtime, which is in Go, accepts.
    """
    assert uses_id_mapped_mounts(spec) is uses


def test_the_group_that_root_becomes() -> None:
    """It is computed from the mapping of group 0."""
    assert (
        remapped_gid(b'{"linux": {}}')
        == remapped_gid(b'{"linux": {"gidMappings": []}}')
        == remapped_gid(b'{"linux": null, "x": "gidMappings"}')
        == 0
    )
    assert (
        remapped_gid(
            b'{"x":' + DEEP + b',"Linux": {"GIDMAPPINGS": [{"containerID": 1, "hostID": 5}, {"hostID": 4294967295}]}}'
        )
        == 4294967295
    )


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (b"{gidMappings idmap", 'invalid character "g" at byte 1'),
        (b'{"x":"\\u0041"', "unexpected end of JSON input"),
        (
            b'{"linux":{"gidMappings":[{"hostID":-1}]},"x":"idmap"}',
            "linux.gidMappings[0].hostID: a number that is no integer from 0 to 4294967295",
        ),
        (b'{"x":"idmap gidMappings","mounts":{}}', "mounts: an object instead of a list"),
        (b'{"\\u0041":' + b"[" * 20_000, "exceeded max depth"),
    ],
)
def test_a_malformed_spec_is_an_error(spec: bytes, why: str) -> None:
    """The error has containerd's class and words."""
    with pytest.raises(errors.Unknown) as unknown:
        remapped_gid(spec)
    assert str(unknown.value) == f"spec: {why}"
    with pytest.raises(errors.InvalidArgument) as invalid:
        uses_id_mapped_mounts(spec)
    assert str(invalid.value) == f"unmarshal spec: {why}: invalid argument"


def test_a_pid_namespace_of_its_own() -> None:
    """A namespace that is joined by its path does not count."""
    for namespaces, own in (
        ([{"type": "pid"}], True),
        ([{"type": "pid", "path": "/proc/1/ns/pid"}], False),
        ([{"type": "network"}], False),
        (None, False),
    ):
        assert (
            own_pids(
                specs.read(
                    b'{"unknown":' + DEEP + b',"linux":' + json.dumps({"namespaces": namespaces}).encode() + b"}"
                )
            )
            is own
        )
    assert not own_pids(specs.read(b"{}"))
