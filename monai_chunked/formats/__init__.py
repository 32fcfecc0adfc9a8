"""Formats of files and stores that results are written in."""
