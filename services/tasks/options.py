"""Runtime options: a message of the runtime's own type, which clients send with a create or store with the container.

Only runc's are read here, once for each create. Those of other runtimes are passed on as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from api.containerd.types.runc.options import oci_pb2
from services.kit import errors
from services.kit.any import unpack
from services.oci.opaque import Opaque
from services.oci.opaque_convert import opaque_to_pb
from services.tasks import checks

_RUNC = oci_pb2.Options.DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """The options of a create, read."""

    given: Opaque | None
    """The options for the shim."""
    image: str = ""
    """The directory of the checkpoint to restore; empty for none."""


def read(program: str, call: Opaque | None, container: Opaque | None, runc_root: Path) -> RuntimeOptions:
    """Read the options of the ``call``, or the ``container``'s if the call has none. InvalidArgument for options that
    the shim at ``program`` does not take, or that are malformed.

    If runc's options name no state directory, ``runc_root`` is filled in. runc's own default is the same directory for
    every containerd of the machine: there, containers of the same name on two nodes would be one.
    """
    checks.runtime_options("options", program, call)
    checks.runtime_options("the container's runtime options", program, container)
    chosen = call if call is not None and call.value else container
    if chosen is None or not (chosen.value or chosen.type_url):
        if not checks.of_runc(program):
            return RuntimeOptions(chosen)
        chosen = Opaque(_RUNC, b"")
    message = opaque_to_pb(chosen)
    assert message is not None
    parsed = unpack(message, oci_pb2.Options)
    if parsed is None or not (chosen.value or checks.of_runc(program)):
        return RuntimeOptions(chosen)
    image = parsed.criu_image_path if chosen is call else ""
    if parsed.root:
        return RuntimeOptions(chosen, image)
    parsed.root = str(runc_root)
    return RuntimeOptions(Opaque(chosen.type_url, parsed.SerializeToString()), image)


def checkpoint_image(runtime: str, options: Opaque | None) -> str:
    """The directory that the options of a Checkpoint call name for the image; empty for the content store."""
    value = opaque_to_pb(options)
    if value is None:
        return ""
    parsed = unpack(value, oci_pb2.CheckpointOptions)
    if parsed is None:
        raise errors.Unknown(f"invalid task checkpoint option for {runtime}")
    return parsed.image_path
