"""What a result depends on, in a form that can be kept and compared."""
