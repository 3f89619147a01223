"""Neighbours: one module for each, which is imported only where the neighbour is used."""
