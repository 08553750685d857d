"""Which code a node runs and which is installed: after an upgrade these differ until each service was started again."""

from __future__ import annotations

from deploy.health import Health
from deploy.place import Place
from services.kit import version


def differences(here: Place, found: list[Health], supervisord: str) -> list[str]:
    """A line for each code that runs and is not what is installed, with the command that changes it.
    ``supervisord`` is the digest of what of ours it runs, "" if it does not tell.
    """
    installed = version.installed()
    services: dict[str, list[str]] = {}
    for each in found:
        if each.status.pid and each.runs != (version.VERSION, installed) and (each.runs or each.healthy):
            services.setdefault(_named(*each.runs) if each.runs else "an older splitd", []).append(each.status.name)
    lines = [
        f"{', '.join(names)} run{'s' if len(names) == 1 else ''} {old}, installed is "
        f"{_named(version.VERSION, installed)}: "
        f"{here.hint('restart --all')} goes over to it, one service after the other, while containers run"
        for old, names in services.items()
    ]
    if supervisord != version.supervisors():
        lines.append(
            f"supervisord runs what was installed when the node was started: {here.hint('down')}, then "
            f"{here.hint('up')}, goes over to what is installed, while containers run"
        )
    return lines


def _named(number: str, revision: str) -> str:
    return f"{number} (revision {revision})" if revision else number
