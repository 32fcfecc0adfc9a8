"""A call: the inferers, the function, checked settings, the plan, the loop, progress."""
