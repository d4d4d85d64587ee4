"""Data sets in the form of catalogue folders, one module each.

Knows no model; what it writes is read by ``mufin.catalogue`` like anybody's catalogue.
"""
