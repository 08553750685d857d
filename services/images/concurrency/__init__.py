"""Limits on what is done at once, and the order of those who wait."""
