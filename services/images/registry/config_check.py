"""Finds all errors in the configuration of registries at once: for people, before anything is pulled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from services.images.registry import cri_config
from services.images.registry.hosts import Hosts
from services.images.registry.hosts_toml import read_directory, text_of, unknown
from services.kit import errors, settings


def problems(file: settings.File, config_path: str) -> Iterator[tuple[str, str]]:
    """The problems: ("error", words) if the images service cannot start, ("trouble", words) if pulls from one registry
    will fail, ("warning", words) if something has no effect.

    ``config_path`` is that of the images service's own settings, which precede those of the CRI plugin.
    """
    where = f"config file {file.path}:"
    try:
        hosts = Hosts.of_config(file.tables, f"config file {file.path}", config_path)
        if hosts.registries is not None:
            for name in hosts.registries.mirrors:
                hosts.of(name)
    except errors.NodeError as error:
        yield "error", str(error).removesuffix(f": {error.suffix}")
        return
    for words in cri_config.unused(file.tables):
        yield "warning", f"{where} {words}"
    name, _ = cri_config.plugin_of(file.tables)
    if config_path and name:
        yield (
            "warning",
            f'{where} [plugins."{name}".registry] has no effect: another config_path comes first, {config_path}',
        )
    for directory in hosts.directories:
        if not directory.is_dir():
            if directory not in cri_config.DEFAULT_DIRECTORIES:
                yield "warning", f"{where} config_path: {directory} is not a directory"
            continue
        for namespace in sorted(directory.iterdir()):
            if namespace.is_dir():
                yield from _of_directory(namespace)


def _of_directory(directory: Path) -> Iterator[tuple[str, str]]:
    """Check one namespace's directory: its hosts.toml, and the certificates that it names."""
    try:
        hosts, text = read_directory(directory), text_of(directory)
    except errors.NodeError as error:
        yield "trouble", str(error).removesuffix(f": {error.suffix}")
        return
    file = directory / "hosts.toml" if text else directory
    for words in unknown(text):
        yield "warning", f"{file}: {words}"
    for host in hosts:
        from services.images.registry.transport import context  # imported when needed: it brings aiohttp along

        try:
            context(host.tls)
        except errors.NodeError as error:
            yield "trouble", f"{file}: {host.host or directory.name}: {str(error).removesuffix(f': {error.suffix}')}"
