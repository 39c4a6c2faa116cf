"""What computes append."""
