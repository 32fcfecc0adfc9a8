"""What differs between machines: free memory, pages, scratch, durable files, accelerators. Knows nothing above it."""
