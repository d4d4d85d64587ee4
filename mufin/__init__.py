"""MUFIN, multi-modal extreme classification: what is computed.

Knows nothing of HTTP, queues or caches; those live in ``service``.
"""
