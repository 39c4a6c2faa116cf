"""Identities and tokens, kept in Vault."""
