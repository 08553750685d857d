"""Copies of live calls for a candidate, and the comparison of its answers with ours."""
