"""Generated Python code of the Stellwerk protos."""
