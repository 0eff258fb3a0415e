"""How each kind of workload is measured: one family of measures a file.

Importing a family registers its measures in ``benchmarks.registry.MEASURES``.
"""
