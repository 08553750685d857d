"""One file for each verb of the splitd command: HELP, arguments(parser), run(arguments)."""

VERBS = (
    "up",
    "down",
    "restart",
    "status",
    "logs",
    "config",
    "pull",
    "push",
    "images",
    "leases",
    "trace",
    "routes",
    "replace",
    "restore",
    "tap",
    "fault",
    "new",
    "shadow",
    "conform",
    "gc",
    "salvage",
    "version",
    "help",
    "completion",
)
"""In the order of the help."""
