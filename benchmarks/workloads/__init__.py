"""The workloads: `functions` that a user might have, and the `registry` of workloads, each with its number of items.

Nodes import this package where a peer pickles functions by reference, so it imports next to nothing.
"""
