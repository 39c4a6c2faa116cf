"""Retention: what may go, and removing it for good."""
