"""Arrays that are read where they are sliced, by any thread and process."""
