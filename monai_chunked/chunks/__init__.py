"""Where a voxel's sum lives, who adds to it, and what a finished chunk goes through. Knows no network and no format."""
