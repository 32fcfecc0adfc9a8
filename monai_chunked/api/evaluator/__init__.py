"""MONAI's evaluator with a bundle's ending in chunks, and what splits it."""
