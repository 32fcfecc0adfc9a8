"""What MONAI's transforms do, known beforehand: voxel by voxel, or from grid to grid."""
