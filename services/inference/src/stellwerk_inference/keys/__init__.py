"""The keys of endpoints."""
