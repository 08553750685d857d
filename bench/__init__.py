"""Measures the node beside containerd: the same work on both, in turn, on one machine, in one run. It prints medians
and ratios.

``image`` makes the images that are pulled. ``peers`` starts the daemons, each on a file system of its own. ``measures``
has the measured work, ``load`` the same under load, ``pulls`` the pulls by the daemons themselves (with ``usage``,
their processor time and memory, and ``distant``, a registry that is far away). ``__main__`` prints.
"""
