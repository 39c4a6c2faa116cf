"""Datastores of workspaces."""
