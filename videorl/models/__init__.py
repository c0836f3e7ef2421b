"""Registered models: named tensors in, named tensors out."""
