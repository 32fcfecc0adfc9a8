"""Runnable examples for monai-chunked, and the data they run on."""
