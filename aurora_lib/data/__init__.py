"""Chinese rows to clean conversations."""
