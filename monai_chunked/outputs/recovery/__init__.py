"""Going on where an earlier run stopped."""
