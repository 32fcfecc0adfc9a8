"""What the package promises, in a folder for each room; what is about the whole of it lies here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Of the repository."""
