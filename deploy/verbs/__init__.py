"""One file for each verb of the splitd command: HELP, arguments(parser), run(arguments)."""
