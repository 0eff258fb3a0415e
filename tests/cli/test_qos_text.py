"""What the qos commands print, by tables: numbers, show, top, explain, audit lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiercache.cli.qos_audit import Followed, lines_of
from tiercache.cli.qos_text import (
    NARROW,
    amount,
    explain_lines,
    rate,
    show_grids,
    show_head,
    si,
    top_grid,
    top_head,
    top_lines,
)
from tiercache.cli.status import qos_rows
from tiercache.model import BackendStatus
from tiercache.qos_reports import (
    BucketNow,
    CapacityNow,
    Claim,
    ClassNow,
    Explained,
    IdentityNow,
    IdentityUse,
    OverrideNow,
    RatesNow,
    RuleSeen,
    ScheduleNow,
    ShareNow,
    SharesNow,
    Show,
    Top,
)

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (0.25, "0.2"),
        (7, "7"),
        (950, "950"),
        (999.6, "1.0 k"),
        (1500, "1.5 k"),
        (99_940, "99.9 k"),
        (99_960, "100 k"),
        (4e8, "400 M"),
        (2.15e9, "2.1 G"),
        (3e15, "3000 T"),
        (-12_000_000, "-12 M"),
    ],
)
def test_numbers(count: float, text: str) -> None:
    assert si(count) == text


@pytest.mark.parametrize(
    ("resource", "value", "text"),
    [
        ("read", 4e8, "400 MB/s"),
        ("bytes", 12, "12 B/s"),
        ("operations", 1500, "1.5 k/s"),
        ("get", 350, "350/s"),
        ("write", None, "-"),
    ],
)
def test_rates(resource: str, value: float | None, text: str) -> None:
    assert rate(resource, value) == text
    assert amount(resource, value) == text.removesuffix("/s")


def test_without_a_policy_nothing_is_listed() -> None:
    assert show_head(Show(), "-") == ["no policy is in force: everybody gets what there is"]
    assert list(show_grids(Show())) == []
    assert top_lines(Top()) == ["no policy is in force: everybody gets what there is"]


def test_a_refused_policy_where_none_is_in_force() -> None:
    assert show_head(Show(error="x:1: no"), "-") == [
        "policy    none is in force",
        "REFUSED   x:1: no",
    ]


TRAINING = IdentityNow(
    name="training",
    class_name="batch",
    shares=SharesNow(
        read=ShareNow(reserve=4e8, limit=8e8, burst=2e7), operations=ShareNow(weight=3.0)
    ),
    in_flight=32,
    max_wait_s=30.0,
    capacity=CapacityNow(used_bytes=3 << 30, min_bytes=1 << 30, max_bytes=8 << 30),
    rules=("name 'training', group 'ml'", "user 'ann'"),
)
BATCH = ClassNow(name="batch", priority=20)
GETS = BackendStatus(
    scope="s3://b", kind="get", limit=500.0, rate=350.0, sent_per_s=340.0, throttled=12, waiting=2,
    paused_s=0.0,
)  # fmt: skip


def test_show() -> None:
    told = Show(
        generation=7,
        source="/etc/qos.toml",
        error="/etc/qos.toml: 2 mistakes\n:3: what is this\n:4: and this",
        profile="training-first",
        node=RatesNow(read=2e9, operations=5e4),
        measured=RatesNow(read=2e9),
        classes=(BATCH,),
        identities=(TRAINING, IdentityNow(name="default", class_name="default")),
        overrides=(OverrideNow(identity="training", key="read.limit", value="8e8", left_s=125.0),),
        schedules=(ScheduleNow(kind="class", name="batch", when="Mon-Fri 08:00-20:00"),),
        backends=(GETS,),
        next_change_s=7380.0,
    )
    assert show_head(told, "yesterday") == [
        "policy    generation 7, from /etc/qos.toml",
        "profile   training-first",
        "REFUSED   /etc/qos.toml: 2 mistakes\n          :3: what is this\n          :4: and this",
        "node      read 2 GB/s, operations 50 k/s",
        "measured  read 2 GB/s (yesterday)",
        "changes   in 2:03:00",
    ]
    classes, identities, caches, rules, overrides, schedules, backends = show_grids(told)
    assert classes.rows == [("batch", "20", "all", "-", "-", "1", "-", "-")]
    assert identities.rows == [
        ("training", "batch", "read", "400 MB/s", "800 MB/s", "1", "20 MB", "32", "30.0 s"),
        ("", "", "operations", "-", "-", "3", "-", "", ""),
        ("default", "default", "all", "-", "-", "1", "-", "-", "-"),
    ]
    assert caches.rows == [("training", "3.0 GiB", "0 B", "1.0 GiB", "-", "8.0 GiB", "-")]
    assert rules.rows == [(rule, "training") for rule in TRAINING.rules]
    assert overrides.rows == [("training", "read.limit", "8e8", "2:05")]
    assert schedules.rows == [("class batch", "Mon-Fri 08:00-20:00")]
    assert backends.rows == [("s3://b", "get", "500/s", "350/s", "340/s", "2", "12", "-")]
    for grid in (classes, identities, caches, rules, overrides, schedules, backends):
        assert {len(row) for row in grid.rows} == {len(grid.header)}
        assert set(grid.right) < set(range(len(grid.header)))


BUSY = IdentityUse(
    identity="training",
    class_name="batch",
    processes=4,
    rates=RatesNow(read=8e8, write=0.0, operations=12_207.4),
    share=0.4,
    waiting=3,
    waiting_s=0.23,
    bound_by="limit read",
    waits=5,
    waited_s=1.5,
    throttled=1,
)


def test_top() -> None:
    told = Top(
        generation=7,
        node=RatesNow(read=2e9),
        used=RatesNow(read=8e8, write=0.0, operations=12_207.4),
        identities=(BUSY, IdentityUse(identity="default", class_name="default")),
        backends=(GETS,),
    )
    assert top_head(told) == (
        "generation 7, node: read 800 MB/s of 2 GB/s, write 0 B/s, operations 12.2 k/s"
    )
    busy, idle = top_grid(told).rows
    assert busy == (
        "training", "4", "800.0", "0.0", "12207", "40%", "3", "230 ms", "limit read", "batch",
        "5", "1.5 s", "1",
    )  # fmt: skip
    assert idle[6:9] == ("-", "-", "-") and len(busy) == len(top_grid(told).header)
    lines = top_lines(told)
    assert len(lines) == 1 + 3 + 2 and lines[2].startswith("training  ")
    narrow = top_grid(told).first(NARROW)
    assert max(map(len, narrow.lines())) <= 80 and narrow.header[-1] == "on"


def test_explain() -> None:
    told = Explained(
        generation=7,
        path="/m/x",
        identity=TRAINING,
        of_class=BATCH,
        use=BUSY,
        claims=(
            Claim(
                claimant="user 'ann', name 'training'",
                identity="training",
                reason="name 'training' matches, the most specific of 2 rules that do",
                rules=(
                    RuleSeen(identity="training", rule="name 'training'"),
                    RuleSeen(identity="users", rule="user 'ann'", reason="name goes before user"),
                    RuleSeen(
                        identity="vip", rule="name 'training'", reason="only bob", refused=True
                    ),
                ),
                pids=(4711, 4712),
            ),
        ),
        schedules=(ScheduleNow(kind="class", name="batch", when="Mon-Fri 08:00-20:00"),),
        overrides=(OverrideNow(identity="training", key="read.limit", value="800MB/s"),),
        buckets=(
            BucketNow(of="identity", resource="read", rate=8e8, level=-4e7, burst=2e7),
            BucketNow(of="node", resource="read", rate=2e9, level=1e6),
        ),
        backends=(GETS,),
    )
    text = "\n".join(explain_lines(told))
    for sentence in (
        "training at /m/x: class batch, priority 20, generation 7",
        "user 'ann', name 'training' (processes 4711, 4712) is charged to training: name",
        "  lost: user 'ann' → users: name goes before user",
        "  refused: name 'training' → vip: only bob",
        "now: 800 MB/s read, 0 B/s written, 12.2 k/s operations by 4 processes",
        "3 wait, the longest for 230 ms, on: limit read",
        "by schedule of class batch: Mon-Fri 08:00-20:00",
        "by override: read.limit = 800MB/s, until unset",
        "at most 32 requests of the identity in flight",
        "-40 MB  in debt: paid in 50 ms",
        "s3://b",
    ):
        assert sentence in text, text
    assert "in debt" not in next(line for line in text.splitlines() if line.startswith("node"))
    idle = explain_lines(
        Explained(
            generation=1, path="/", identity=TRAINING, of_class=BATCH,
            use=IdentityUse(identity="training"),
        )
    )  # fmt: skip
    assert any(line.endswith("; nobody waits") for line in idle)


@pytest.mark.parametrize(
    ("qos", "rows"),
    [
        ({}, []),
        ({"generation": 0, "error": "", "identities": []}, []),
        ({"generation": 0, "error": "no\n1\n2", "identities": []}, [("QOS", "no")]),
        (
            {
                "generation": 2,
                "error": "",
                "identities": [
                    {"identity": "a", "waiting": 1},
                    {"identity": "b", "waiting": 0},
                    {"identity": "c", "waiting": 2},
                ],
            },
            [("qos", "generation 2, 3 identities; a, c wait")],
        ),
    ],
)
def test_status_has_a_line_of_it(qos: dict[str, object], rows: list[tuple[str, str]]) -> None:
    assert qos_rows(qos) == rows


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("{not json", ["{not json"]),
        ("[1]", ["[1]"]),
        ('{"what": "set", "of": "a b", "keys": [1]}', ["?  set       of a b keys [1]"]),
        (
            '{"unix_s": 0, "what": "apply", "pid": 7, "user": "ann", "before": 3, "generation": 4,'
            ' "differences": ["a → b", "c"]}',
            ["-  apply     generation 3 → 4 by ann pid 7", "    a → b", "    c"],
        ),
        (
            '{"unix_s": 0, "what": "denied", "identity": "x", "reason": "too long", "more": 3}',
            ["-  denied    identity x reason too long more 3"],
        ),
        (
            '{"what": "apply", "differences": ["d"' + ', "d"' * 11 + "]}",
            ["?  apply", *["    d"] * 10, "    and 2 more, see --json"],
        ),
    ],
)
def test_lines_of_the_audit_log(line: str, lines: list[str]) -> None:
    assert lines_of(line) == lines


def test_a_followed_log_gives_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    followed = Followed(path)
    assert list(followed.more()) == []
    path.write_text("one\ntwo\nth")
    assert list(followed.more()) == ["one", "two"]
    with open(path, "a") as file:
        file.write("ree\n")
    assert list(followed.more()) == ["three"] and list(followed.more()) == []
    with open(path, "a") as file:
        file.write("late\n")
    os.rename(path, tmp_path / "log.1")
    path.write_text("four\n")
    assert list(followed.more()) == ["late", "four"]
    path.write_text("5\n")  # shorter: begun anew
    assert list(followed.more()) == ["5"]
    with open(path, "a") as file:
        file.write('"a\u2028b\x85c"\n\n6\n')  # a path may hold what other programs end lines by
    assert list(followed.more()) == ['"a\u2028b\x85c"', "6"]
