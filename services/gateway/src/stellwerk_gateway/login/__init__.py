"""Logins of browsers: OpenID Connect, and the cookie that stands for a key."""
