"""The ready policies: each is a policy file of its own, and what a file may start from.

All know the same classes and identities, so that a file can go from one to another by a word. The
names "training", "interactive" and "prefetch" may be claimed by anybody; a file that narrows that
says so: ``[[identity]] name = "training"``, ``claim = "@training"``.
"""

from __future__ import annotations

_IDENTITIES = """\
[[identity]]
name = "training"
class = "training"
match = { name = "training" }

[[identity]]
name = "interactive"
class = "interactive"
match = { name = "interactive" }

[[identity]]
name = "prefetch"
class = "prefetch"
match = { name = "prefetch" }
"""

# Nobody goes before anybody; a prefetch counts for a quarter of a reader, and nobody is squeezed
# out altogether.
BALANCED = (
    """\
version = 1

[[class]]
name = "training"
read = { reserve = "20%" }
write = { reserve = "20%" }
operations = { reserve = "20%" }

[[class]]
name = "interactive"
read = { reserve = "10%" }
write = { reserve = "10%" }
operations = { reserve = "10%" }

[[class]]
name = "prefetch"
read = { reserve = "10%", weight = 0.25 }
write = { reserve = "10%", weight = 0.25 }
operations = { reserve = "10%", weight = 0.25 }

"""
    + _IDENTITIES
)

# Half of the node is training's whenever it wants it, and all that others leave; a person at a
# notebook feels little of it; a prefetch gets what is left.
TRAINING_FIRST = (
    """\
version = 1

[[class]]
name = "training"
priority = 20
read = { reserve = "50%" }
write = { reserve = "50%" }
operations = { reserve = "50%" }

[[class]]
name = "interactive"
priority = 10
read = { reserve = "10%" }
write = { reserve = "10%" }
operations = { reserve = "10%" }

[[class]]
name = "prefetch"
priority = -10

"""
    + _IDENTITIES
)

# For nodes that are filled before jobs start: half of the node brings data near, running jobs keep
# a fifth at least.
PREFETCH_FIRST = (
    """\
version = 1

[[class]]
name = "prefetch"
priority = 20
read = { reserve = "50%" }
write = { reserve = "50%" }
operations = { reserve = "50%" }

[[class]]
name = "training"
priority = 10
read = { reserve = "20%" }
write = { reserve = "20%" }
operations = { reserve = "20%" }

[[class]]
name = "interactive"
read = { reserve = "10%" }
write = { reserve = "10%" }
operations = { reserve = "10%" }

"""
    + _IDENTITIES
)

TEXTS = {
    "balanced": BALANCED,
    "training-first": TRAINING_FIRST,
    "prefetch-first": PREFETCH_FIRST,
}
