"""Event subscribers: NATS credentials that read the journal of some workspaces, and nothing else."""
