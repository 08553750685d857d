"""The node through the gateway, as the caller of a transfer."""
