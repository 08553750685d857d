"""Containers that run: shims, their tasks, execs and exits, and the restart monitor: the ``tasks`` process."""
