"""Volumes that are drawn, not scanned, for the tutorials: reproducible, as NIfTI files, and of nobody.

    python -m tutorials.phantoms

draws `tutorials/phantoms.png`, the page of pictures of them. Nothing that is trained on them is for clinical use.
"""
