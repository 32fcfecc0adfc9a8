"""Going on where an earlier run stopped: what it left, whether it was the same run, and a record of this one."""
