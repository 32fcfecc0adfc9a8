"""What windows are read from."""
