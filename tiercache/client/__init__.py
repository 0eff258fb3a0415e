"""What runs in the training process: finding bytes in the index, or asking the agent for them."""
