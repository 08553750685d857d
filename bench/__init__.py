"""The node side by side with containerd: the same work on both, in turn, on one machine, in one run; medians and
ratios.

``image`` makes the images that are pulled, ``peers`` starts the daemons on a file system each, ``measures`` is what is
measured, ``load`` the same under load, ``pulls`` the pulls by the daemons themselves (with ``usage``, what they use
meanwhile, and ``distant``, a registry that is far away), ``__main__`` prints.
"""
