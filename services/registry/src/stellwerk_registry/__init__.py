"""Workspaces, datasets, environments, models and blobs."""
