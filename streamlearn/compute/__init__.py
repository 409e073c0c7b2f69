"""Lanes that run kernels, and the kernels; nothing here knows what is computed, or for whom."""
