"""How a node is run: the `splitd` command, supervisord's configuration, the systemd unit, the demo.

What a node consists of is the table in :mod:`deploy.processes`; everything here is derived from it.
"""
