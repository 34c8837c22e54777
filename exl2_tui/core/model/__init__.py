"""Decoder-only transformers: the readable reference in plain torch, the native one, and how to load either."""
