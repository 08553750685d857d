"""Modules that a process loads when it first uses them, since it may never do so.

Libraries of others have the same interface after an upgrade. ::

    if TYPE_CHECKING:
        import aiohttp
    else:
        aiohttp = later.Library("aiohttp")

Our own modules do not: by then another release may be installed, and a process must not run two. So their code is kept
as it is when the process starts. ::

    later.Code("services/images", "services/oci/digests.py")
"""

from __future__ import annotations

import importlib
import importlib.util
import marshal
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_TOP = __file__.rsplit("/", 3)[0]


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


class Code(MetaPathFinder, Loader):
    """Python imports from here, from now on, those of our modules that it has not loaded and that are in ``paths``:
    files, and directories with all below them. It keeps them in a file in memory, about 10 KB each. Raises OSError.
    """

    def __init__(self, *paths: str, top: str = _TOP) -> None:
        self._file = os.memfd_create("splitd-later", os.MFD_CLOEXEC)
        self._places: dict[str, tuple[str, int, int]] = {}
        """By the name of a module its file, and where its code is."""
        at = 0
        for path in (each for name in paths for each in _files(f"{top}/{name}")):
            name = path[len(top) + 1 : -len(".py")].replace("/", ".").removesuffix(".__init__")
            if name not in sys.modules and name not in self._places:
                code = _code(name, path)
                self._places[name] = path, at, len(code)
                at += os.write(self._file, code)
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._places:
            return None
        file, _, _ = self._places[fullname]
        package = file.endswith("/__init__.py")
        spec = ModuleSpec(fullname, self, origin=file, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(file)]
        return spec

    def exec_module(self, module: ModuleType) -> None:
        _, at, size = self._places[module.__name__]
        exec(marshal.loads(os.pread(self._file, size, at)), module.__dict__)  # noqa: S102, S302 (our own code)

    def close(self) -> None:
        """Everything that is needed is loaded."""
        sys.meta_path.remove(self)
        os.close(self._file)


class Servicer(Generic[T]):
    """Answers the calls of ``service`` as the servicer that ``make`` makes at the first of them, which has each of its
    methods.
    """

    def __init__(self, service: Any, make: Callable[[], T]) -> None:
        self.SERVICE = service
        self._make = make
        self._made: T | None = None

    def made(self) -> T:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getattr__(self, name: str) -> Any:
        if name not in self.SERVICE.methods_by_name:
            raise AttributeError(name)

        def answer(request: Any, call: Any) -> Any:
            return getattr(self.made(), name)(request, call)

        return answer


def _files(path: str) -> Iterator[str]:
    """The Python files in a directory, or the one of this path."""
    if path.endswith(".py"):
        yield path
        return
    for directory, directories, files in os.walk(path):
        directories[:] = sorted(each for each in directories if each != "__pycache__")
        yield from (f"{directory}/{file}" for file in sorted(files) if file.endswith(".py"))


def _code(name: str, path: str) -> bytes:
    """The code of a module, marshalled. Python's own way to it would make all its objects, for nothing."""
    source = os.stat(path)
    try:
        with open(importlib.util.cache_from_source(path), "rb") as file:
            compiled = file.read()
    except OSError:
        compiled = b""
    size = (source.st_size & 0xFFFFFFFF).to_bytes(4, "little")
    time = (int(source.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little")
    if compiled[:16] == importlib.util.MAGIC_NUMBER + bytes(4) + time + size:  # PEP 552
        return compiled[16:]
    return marshal.dumps(SourceFileLoader(name, path).get_code(name))
