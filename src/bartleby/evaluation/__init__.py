"""Measures of latents and of text."""
