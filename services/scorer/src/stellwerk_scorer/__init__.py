"""The scoring server inside a deployment."""
