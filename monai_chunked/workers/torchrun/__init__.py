"""One volume in several processes, as torchrun starts them."""
