"""Libraries that a process loads when it first uses them, since it may never do so.

Only libraries of others: our own modules are loaded at the start, as later another release may be installed. A
library has the same interface then. ::

    if TYPE_CHECKING:
        import aiohttp
    else:
        aiohttp = later.Library("aiohttp")
"""

from __future__ import annotations

import importlib
from typing import Any


class Library:
    """A module, by its attributes. Its submodules are those that it loads itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(importlib.import_module(self._name), name)
        setattr(self, name, found)  # this method is called for missing attributes only
        return found
