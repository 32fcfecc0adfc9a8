"""One volume on the workers of a Dask cluster."""
