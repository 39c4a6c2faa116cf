"""Mini-batches: the pieces of jobs that replicas lease."""
