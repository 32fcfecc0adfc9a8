"""Who does what of a volume."""
