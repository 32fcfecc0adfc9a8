"""Finished chunks in OME-Zarr stores: the output, where stores are, how they are written, what is said of them."""
