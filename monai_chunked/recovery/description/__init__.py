"""What the result of a run depends on, in a form that can be kept and compared."""
