"""A client of containerd's API for people: transfers with their progress, and what images there are. What ``splitd
pull``, ``push`` and ``images`` are made of.
"""
