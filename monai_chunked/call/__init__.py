"""What is asked for: parameters, checked, with what the input says of itself."""
