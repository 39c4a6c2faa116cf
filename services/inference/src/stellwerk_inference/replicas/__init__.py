"""Replicas: the scoring servers of a deployment."""
