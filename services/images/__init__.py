"""The images service: names for content."""
