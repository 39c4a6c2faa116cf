"""The scoring server inside a deployment."""

__version__ = "0.1.0"
