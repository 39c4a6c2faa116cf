"""Events that a consumer failed to handle."""
