"""Consistency, checked as the field does it (Jepsen, Knossos, Porcupine).

Processes of two sites use a few keys through a bad network; what they did and saw, with times, is a
history (``operations``). Checkers decide whether a mode allows it (``linearizable`` for strong,
``intervals`` for the others); a report shows what it does not (``reports``). ``runner`` makes
histories by the hundred; ``python -m tiercache.testing.consistency`` repeats one by its seed.
"""
