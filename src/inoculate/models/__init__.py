"""Models: loading, adapters, weight arithmetic, the sandbox's tiny language model."""
