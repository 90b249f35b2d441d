"""Anomaly models learn good images alone: a folder under methods/ for each, with its figures in a README."""
