"""OME-Zarr: stores, what their metadata say, and the images in them."""
