"""How requests reach ``mufin.predictor``: network, waiting, caching. Imports no torch."""
