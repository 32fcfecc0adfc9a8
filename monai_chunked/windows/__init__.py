"""What the network sees and says."""
