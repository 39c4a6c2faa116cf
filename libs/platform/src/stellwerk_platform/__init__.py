"""What every Stellwerk service stands on."""
