"""Replicas by load."""
