"""The activity log: who did or tried what, from the journal and from what was refused."""
