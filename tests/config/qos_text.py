"""A policy file with every key there is."""

from __future__ import annotations

EVERYTHING = """\
version = 1

[node]
read = "5GB/s"
write = 2e9
operations = "100k/s"
safe_share = "20%"

[[class]]
name = "first"
priority = 20
read = { reserve = "50%", limit = "4GiB/s", weight = 3, burst = "64MiB" }
write = { limit = "unlimited" }
operations = { reserve = 100, burst = "2k" }
in_flight = 64
[[class.schedule]]
when = ["Mon-Fri 08:00-20:00", "Sun"]
priority = -5
in_flight = 128

[[identity]]
name = "a"
class = "first"
match = [
    { user = ["ada", 1000], group = "ml", name = "train", access_key = "K", path = "/x/y" },
    { path = ["s3://bucket/p", "/z"] },
]
claim = ["ada", "@ml"]
read = { reserve = 0, limit = "100%" }
in_flight = 4
max_wait = "1.5m"
capacity = { min = "10GiB", soft = "20%", max = 50_000_000_000, pin_max = "0%" }
[[identity.schedule]]
when = "fri-mon 22:00-06:00"
write = { weight = 0.5 }
max_wait = 2

[[backend]]
origin = "s3://"
get = "3k/s"
put = 100
list = "0.5/s"
bytes = "1GB/s"
adaptive = false
[[backend]]
origin = "s3://bucket/prefix/"
"""
