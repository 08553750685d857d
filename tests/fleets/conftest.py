"""The tier of the fleet: several nodes on networks of their own (tests/fleets/network.py)."""
