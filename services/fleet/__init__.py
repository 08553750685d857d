"""The fleet: what this node shares with others."""
