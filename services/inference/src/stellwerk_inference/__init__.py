"""Endpoints, deployments, replicas and routes."""
