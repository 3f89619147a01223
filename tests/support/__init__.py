"""Helpers of the tests: a throwaway cluster, gates, scripts, functions that fail."""
