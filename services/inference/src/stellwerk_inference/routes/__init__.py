"""Routes: what the gateway needs to know."""
