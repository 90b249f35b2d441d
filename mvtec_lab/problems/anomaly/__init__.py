"""Anomaly models learn good images alone; each method is a folder under methods/, with its figures in a README."""
