"""The command line. Modules here import nothing heavy: `stellwerk --help` answers at once."""
