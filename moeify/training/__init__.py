"""What any training loop can use for a converted model: losses and how to get at them."""
