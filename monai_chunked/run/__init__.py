"""A run in one process: checked settings, the call, the plan, the story."""
