"""The deletion of workspaces."""
