"""Compares the code that a node runs with the installed code. After an upgrade they differ until each service is
restarted.
"""

from __future__ import annotations

from deploy.health import Health
from deploy.place import Place
from services.kit import version


def differences(here: Place, found: list[Health], supervisord: str) -> list[str]:
    """A line for each running version that is not the installed one, with the command that changes it. ``supervisord``
    is the digest of our code in supervisord, "" if it does not tell.
    """
    installed = version.installed()
    services: dict[str, list[str]] = {}
    for each in found:
        if each.status.pid and each.runs != (version.VERSION, installed) and (each.runs or each.healthy):
            services.setdefault(_named(*each.runs) if each.runs else "an older splitd", []).append(each.status.name)
    lines = [
        f"{', '.join(names)} run{'s' if len(names) == 1 else ''} {old}, installed is "
        f"{_named(version.VERSION, installed)}: "
        f"{here.hint('restart --all')} changes to it, one service after the other, while containers run"
        for old, names in services.items()
    ]
    if supervisord != version.supervisors():
        lines.append(
            f"supervisord runs what was installed when the node was started: {here.hint('down')}, then "
            f"{here.hint('up')}, changes to what is installed now, while containers run"
        )
    return lines


def _named(number: str, revision: str) -> str:
    return f"{number} (revision {revision})" if revision else number
