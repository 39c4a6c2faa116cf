"""Endpoints: the addresses that deployments stand behind."""
