"""The voxels of one grid made of those of another, to the bit."""
