"""Batch scoring: jobs that score datasets in mini-batches on the replicas of batch deployments."""
