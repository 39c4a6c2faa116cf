"""Limits of workspaces."""
