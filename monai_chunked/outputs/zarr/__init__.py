"""OME-Zarr stores."""
