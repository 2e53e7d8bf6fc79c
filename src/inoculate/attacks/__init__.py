"""Attacks: values that turn a model into a model. Whether they succeeded is judged elsewhere."""
