"""One file for each action of ``splitd fleet``: HELP, arguments(parser), run(arguments)."""

ACTIONS = ("nodes", "images", "containers", "why", "pull", "trace")
"""In the order of the help. The first one is the default."""
