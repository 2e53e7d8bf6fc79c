"""Experiments: stages, the store that keeps their results, recipes, and the runner."""
