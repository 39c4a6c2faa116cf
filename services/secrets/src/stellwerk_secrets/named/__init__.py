"""Named secrets of workspaces."""
