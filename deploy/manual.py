"""The man page of the splitd command, splitd(8). It is made of the command's parser and of the texts below, so that it
says what the command does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from deploy import place
from services.kit import version

EXIT_STATUS = {
    "0": "done; for status: all services are healthy",
    "1": "failed: one line on standard error says what failed, and why",
    "2": "mistyped: the line says what would be right",
    "3": "no node is up",
    "130": "interrupted by Ctrl-C (143 by SIGTERM, 129 by SIGHUP)",
}
ENVIRONMENT = {
    "SPLITD_ROOT, SPLITD_STATE, SPLITD_CONFIG": "stand for --root, --state and --config if those are not given",
    "CONTAINERD_NAMESPACE": "containerd's namespace, if -n does not choose one",
    "NO_COLOR": "if it is set, no output has colours",
    "COLUMNS": "the width of a trace, if it is not printed to a terminal (default: 120)",
    "SPLITD_LOG": "for up: the lowest level that the node logs, such as DEBUG",
    "SPLITD_DEBUG": "1 shows the traceback if this command has a bug",
    "OTEL_EXPORTER_OTLP_ENDPOINT": (
        "for up: the endpoint of an OpenTelemetry collector for traces; OpenTelemetry's other variables work too"
    ),
}
FILES = {
    str(place.ETC): "the configuration, if it exists; splitd config default prints every setting with its explanation",
    "/etc/default/splitd": "the environment of the node under systemd",
    "/var/lib/splitd": "ROOT: what survives a reboot, and the logs",
    "/run/splitd": "STATE: sockets and other files of the current boot; clients connect to its containerd.sock",
}


def page(top: argparse.ArgumentParser) -> str:
    """The page, in the language of man(7)."""
    return (
        "\n".join(
            [
                f'.TH "{_text(top.prog.upper())}" "8" "" "{_text(top.prog)} {version.SPLITD}" "System Administration"',
                ".SH NAME",
                f"{_text(top.prog)} \\- {_text(_summary(top))}",
                ".SH SYNOPSIS",
                f"\\fB{_text(top.prog)}\\fR \\fIVERB\\fR [\\fIOPTION\\fR...]",
                ".SH DESCRIPTION",
                _text(top.description or ""),
                ".SH VERBS",
                *_verbs(top),
                ".SH OPTIONS OF EVERY VERB",
                *_options(_common()),
                ".SH EXIT STATUS",
                *_pairs(EXIT_STATUS),
                ".SH ENVIRONMENT",
                *_pairs(ENVIRONMENT),
                ".SH FILES",
                *_pairs(FILES),
            ]
        )
        + "\n"
    )


def _summary(top: argparse.ArgumentParser) -> str:
    return (top.description or "").partition(",")[0].rstrip(".").lower()


def _common() -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    place.add_arguments(parser)
    return parser._actions


def _verbs(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A section of the page for each verb, and for each of its actions."""
    everywhere = {action.dest for action in _common()}
    for child in _children(parser):
        own = [action for action in child._actions if action.dest not in everywhere]
        yield f".SS {_text(child.prog)} {' '.join(_usage(action) for action in own)}".rstrip()
        yield _text(_sentence(child.description or ""))
        yield from _options(own)
        yield from _verbs(child)


def _children(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of its verbs, each once, although a verb may have aliases."""
    found: list[argparse.ArgumentParser] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += dict.fromkeys(action.choices.values())
    return found


def _usage(action: argparse.Action) -> str:
    """``[--lines N]``, ``REF``, ``[SERVICE...]``"""
    if not action.option_strings:
        many = "..." if action.nargs in ("*", "+") else ""
        return (
            f"[{_name(action)}{many}]"
            if action.nargs in ("*", "?") or not action.required
            else f"{_name(action)}{many}"
        )
    return f"[\\fB{_text(action.option_strings[-1])}\\fR{f' {_name(action)}' if action.nargs != 0 else ''}]"


def _name(action: argparse.Action) -> str:
    return f"\\fI{_text(str(action.metavar or action.dest.upper()))}\\fR"


def _options(actions: list[argparse.Action]) -> Iterator[str]:
    for action in actions:
        if action.help in (None, argparse.SUPPRESS) or isinstance(
            action, (argparse._SubParsersAction, argparse._HelpAction)
        ):
            continue
        words = ", ".join(f"\\fB{_text(each)}\\fR" for each in action.option_strings)
        yield from (
            ".TP",
            " ".join(filter(None, (words, _name(action) if action.nargs != 0 else ""))),
            _text(action.help or ""),
        )


def _pairs(pairs: dict[str, str]) -> Iterator[str]:
    for name, meaning in pairs.items():
        yield from (".TP", f"\\fB{_text(name)}\\fR", _text(meaning))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _text(text: str) -> str:
    """Escape text so that man shows it unchanged."""
    shown = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("%%", "%")
    return f"\\&{shown}" if shown.startswith(".") else shown
