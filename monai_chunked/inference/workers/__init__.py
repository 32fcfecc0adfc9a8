"""One volume, several processes that torch.distributed has started: each does a part, and all get the result."""
