"""Geometry: windows, chunks, which touch, when each opens and finishes, what a run holds. Integers only."""
