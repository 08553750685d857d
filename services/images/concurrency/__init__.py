"""Limits on concurrent work, and the order of waiting callers."""
