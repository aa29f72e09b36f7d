"""Imports of sheets: how their columns are saved under a name, and sheets that wait for the worker."""
