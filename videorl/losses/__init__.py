"""Registered losses over named tensors."""
