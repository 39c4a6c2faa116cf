"""The connections of agents."""
