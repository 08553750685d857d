"""Options of runc are read and completed; those of other runtimes are passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.containerd.types.runc.options import oci_pb2
from services.kit import errors
from services.oci.opaque import Opaque
from services.tasks import options
from services.tasks.options import RuntimeOptions

RUNC = "containerd.runc.v1.Options"
PROGRAM, OTHER = "/usr/bin/containerd-shim-runc-v2", "/usr/bin/containerd-shim-kata-v2"
ROOT = Path("/s/runc")
KATA = Opaque("runtimeoptions.v1.Options", b"\x0a\x01x")


def runc(**fields: str) -> Opaque:
    return Opaque(RUNC, oci_pb2.Options(**fields).SerializeToString())  # type: ignore[arg-type]


def test_runcs_root_is_filled_in_where_it_is_empty() -> None:
    """No options, empty options and options without a root get it; a given root is kept, and so is every other field,
    known or not.
    """
    filled = RuntimeOptions(runc(root="/s/runc"))
    for call in (None, Opaque(RUNC, b""), Opaque("", b"")):
        for container in (None, Opaque(RUNC, b"")):
            assert options.read(PROGRAM, call, container, ROOT).given is not None
    assert options.read(PROGRAM, None, None, ROOT) == filled
    assert options.read(PROGRAM, None, Opaque(RUNC, b""), ROOT) == filled
    unknown = oci_pb2.Options(binary_name="crun").SerializeToString() + b"\x42\x03abc"  # field 8, which was criu_path
    merged = options.read(PROGRAM, Opaque("type.googleapis.com/" + RUNC, unknown), None, ROOT).given
    assert merged is not None
    assert merged.type_url == "type.googleapis.com/" + RUNC
    assert b"\x42\x03abc" in merged.value
    assert oci_pb2.Options.FromString(merged.value).binary_name == "crun"
    assert oci_pb2.Options.FromString(merged.value).root == "/s/runc"
    own = runc(root="/mine")
    assert options.read(PROGRAM, own, None, ROOT).given is own


def test_options_of_the_call_come_first() -> None:
    """The container's options are used if the call has none."""
    mine, its = runc(root="/mine"), runc(root="/its")
    assert options.read(PROGRAM, mine, its, ROOT).given is mine
    assert options.read(PROGRAM, None, its, ROOT).given is its
    assert options.read(PROGRAM, Opaque(RUNC, b""), its, ROOT).given is its


def test_options_of_other_runtimes_are_passed_on() -> None:
    """A shim of runc takes only runc's."""
    assert options.read(OTHER, KATA, None, ROOT) == RuntimeOptions(KATA)
    assert options.read(OTHER, None, KATA, ROOT) == RuntimeOptions(KATA)
    assert options.read(OTHER, None, None, ROOT) == RuntimeOptions(None)
    assert options.read(OTHER, Opaque(RUNC, b""), None, ROOT).given is None
    with pytest.raises(errors.InvalidArgument, match="^options: .* is no option of containerd-shim-runc-v2"):
        options.read(PROGRAM, KATA, None, ROOT)
    with pytest.raises(errors.InvalidArgument, match="^the container's runtime options: .* is no option of"):
        options.read(PROGRAM, None, KATA, ROOT)


def test_malformed_options_are_refused() -> None:
    for call, container in ((Opaque(RUNC, b"\xff"), None), (None, Opaque(RUNC, b"\xff"))):
        with pytest.raises(errors.InvalidArgument, match="^malformed containerd.runc.v1.Options"):
            options.read(PROGRAM, call, container, ROOT)


def test_paths_of_checkpoints() -> None:
    """Restoring uses only the path in the call; for a checkpoint, options of another type are an error."""
    image = runc(criu_image_path="/r", root="/mine")
    assert options.read(PROGRAM, image, None, ROOT).image == "/r"
    assert options.read(PROGRAM, None, image, ROOT).image == ""
    wanted = Opaque(
        "containerd.runc.v1.CheckpointOptions", oci_pb2.CheckpointOptions(image_path="/i").SerializeToString()
    )
    assert options.checkpoint_image("r", wanted) == "/i"
    assert options.checkpoint_image("r", None) == ""
    with pytest.raises(errors.Unknown, match="^invalid task checkpoint option for r$"):
        options.checkpoint_image("r", Opaque("other", b""))
