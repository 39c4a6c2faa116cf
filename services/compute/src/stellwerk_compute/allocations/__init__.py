"""Workloads placed on computes."""
