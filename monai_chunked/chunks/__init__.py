"""Where a sum lives and who adds to it."""
