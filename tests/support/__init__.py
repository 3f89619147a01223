"""What the tests share: a throwaway cluster, gates, scripts, functions that fail."""
