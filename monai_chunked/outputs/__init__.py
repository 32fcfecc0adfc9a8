"""Where finished chunks go: one file or folder a format, behind the interface in ``base.py``."""
