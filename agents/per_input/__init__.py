"""Learn to set runtime ratios for each input."""
