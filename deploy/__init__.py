"""How a node is run: the `splitd` command, supervisord's configuration, the systemd unit, the demo.

The table in :mod:`deploy.processes` says which processes a node has. Everything here is derived from it.
"""
