"""Measure networks on images: one alone, or several side by side."""
