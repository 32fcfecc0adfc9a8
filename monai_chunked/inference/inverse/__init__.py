"""How the preprocessing of an image is undone: what MONAI's transforms do, seen beforehand, and then chunk by chunk."""
