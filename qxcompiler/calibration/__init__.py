"""Samples in, streaming statistics out."""
