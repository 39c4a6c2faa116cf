"""Records: what is logged and is no scalar point."""
