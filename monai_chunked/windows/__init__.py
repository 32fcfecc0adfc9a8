"""What the network sees and what it says of it: reading, batches, importance maps, predictions."""
