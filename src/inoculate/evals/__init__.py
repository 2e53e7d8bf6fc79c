"""Evaluation: generation, judges, tasks, statistics."""
