"""stellwerk up: the real servers and all services as child processes."""
