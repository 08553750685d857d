"""The part of table [fleet] that the pull engine needs; the process ``fleet`` reads all of it, and checks it."""

from __future__ import annotations

from dataclasses import dataclass

from services.kit import errors, settings

NAMESPACES = ("default",)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """How peers are reached, and the namespaces whose blobs are shared with them."""

    ca: str
    cert: str
    key: str
    namespaces: tuple[str, ...] = NAMESPACES


def of(file: settings.File) -> FleetSettings | None:
    """The settings; None if the node has no fleet, or if its nodes give each other no blobs (``peers = false``)."""
    table = file.tables.get("fleet")
    if not isinstance(table, dict) or table.get("peers") is False or not table.get("ca"):
        return None
    ca, cert, key = (table.get(name, "") for name in ("ca", "cert", "key"))
    namespaces = table.get("namespaces", list(NAMESPACES))
    if not all(isinstance(each, str) for each in (ca, cert, key)):
        raise errors.InvalidArgument(f"config file {file.path}: [fleet] ca, cert and key are paths")
    if not isinstance(namespaces, list) or not all(isinstance(each, str) for each in namespaces):
        raise errors.InvalidArgument(f"config file {file.path}: [fleet] namespaces is a list of names")
    return FleetSettings(ca=ca, cert=cert, key=key, namespaces=tuple(namespaces))
