"""What runs in the training process: finding bytes in the index, and asking the agent for the rest."""
