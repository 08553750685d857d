"""A client of containerd's API for people: lists images, and makes transfers with progress. ``splitd pull``, ``push``
and ``images`` are made of it.
"""
