"""What is behind each command of `python -m monai_chunked`."""
