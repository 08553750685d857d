"""How much is done at once, and who waits for whom."""
