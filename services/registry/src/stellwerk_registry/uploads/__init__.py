"""Blobs that travel in parts."""
