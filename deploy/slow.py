"""From when on an operation is slow. This is apart from :mod:`deploy.traces`, which imports much that most pulls need
not.
"""

from __future__ import annotations

from deploy.place import Place
from services.kit import errors, settings
from services.traces.config import Config


def seconds(here: Place) -> float:
    """Seconds from which on an operation is slow on the node at ``here``: its store keeps such ones longer, ``trace ls
    --slow`` lists them, and ``pull`` says where the time went. If its configuration is wrong, which other commands say,
    it is the default.
    """
    try:
        return settings.load(Config, settings.read(here.config), "traces").slow
    except errors.NodeError:
        return Config().slow
