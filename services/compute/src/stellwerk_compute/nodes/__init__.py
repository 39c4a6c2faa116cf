"""Machines with an agent, and their leases."""
