"""Who may do what in a workspace."""
