"""Blobs that go."""
