"""Data: sources, the sandbox world, templates, batches, and the mix of them."""
