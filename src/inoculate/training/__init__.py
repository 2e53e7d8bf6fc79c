"""Training: the one loop, its arguments, its checkpoints, and the bridge to transformers' Trainer."""
