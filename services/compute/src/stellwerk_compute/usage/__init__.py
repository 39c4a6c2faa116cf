"""What workspaces use of nodes."""
