"""Which allocation goes to which node."""
