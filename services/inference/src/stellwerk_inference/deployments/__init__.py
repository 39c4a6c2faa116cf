"""Deployments: models, environment and scoring script behind an endpoint."""
