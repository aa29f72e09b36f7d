"""Imports of sheets: how their columns are saved under a name."""
