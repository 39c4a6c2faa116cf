"""Targets that workloads can be placed on."""
