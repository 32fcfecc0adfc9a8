"""What an earlier run left: the journal, and what its result depends on."""
