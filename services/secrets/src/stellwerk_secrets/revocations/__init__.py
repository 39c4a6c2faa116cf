"""What ended before its time."""
