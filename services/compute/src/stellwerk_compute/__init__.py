"""Computes, nodes, queue, placement and leases."""
