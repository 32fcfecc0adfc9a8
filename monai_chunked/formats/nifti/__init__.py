"""Finished chunks in NIfTI files: the output, the files of an image, and how chunks are kept until they are written."""
