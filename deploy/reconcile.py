"""Gives a node that is up the optional processes that its configuration wants by now, and takes those away that it does
not want any more.

supervisord is told of these only: what else has changed in the configuration for supervisord itself is read after
``splitd down``, then ``splitd up``.
"""

from __future__ import annotations

from deploy import running, supervision
from deploy.place import Place
from deploy.processes import OPTIONAL, of
from services.kit import settings


def optional(here: Place, supervisor: supervision.Supervisor) -> list[str]:
    """Do so; a line for each. It may be interrupted at any point, and is then done by the next call."""
    file = settings.read(here.config)
    wanted, there, said = of(file), supervisor.processes(), []
    for process in OPTIONAL:
        told = process in running.processes(here)
        if process in wanted and not (told and process.name in there):
            if not told:
                _write(here, here.supervisord_conf.read_text() + supervision.program(here, process, file))
            supervisor.add(process)
            said.append(f"started {process.name}, which the configuration has now")
        elif process not in wanted and (told or process.name in there):
            if process.name in there:
                supervisor.remove(process)
            _write(here, without(here.supervisord_conf.read_text(), process.name))
            running.forget(here, process)
            said.append(f"stopped {process.name}, which the configuration has no more")
    return said


def _write(here: Place, text: str) -> None:
    new = here.supervisord_conf.with_name(f"{here.supervisord_conf.name}.new")
    new.write_text(text)
    new.replace(here.supervisord_conf)


def without(text: str, name: str) -> str:
    """The configuration of supervisord, ``text``, without a program's section."""
    before, found, rest = text.partition(f"[program:{name}]\n")
    _, mark, after = rest.partition("\n[")
    return before + (mark.lstrip("\n") + after if found else "")
