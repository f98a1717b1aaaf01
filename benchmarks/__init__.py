"""Measurements. Each module writes a JSON file that says how it was made."""
