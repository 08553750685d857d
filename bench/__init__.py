"""The node side by side with containerd: the same work on both, in turn, on one machine, in one run; medians and ratios.

``image`` makes the image that is pulled, ``peers`` starts both daemons on a file system each, ``measures`` is what is measured, ``__main__`` prints.
"""
