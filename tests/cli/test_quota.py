"""quota ls, set, check on a running agent."""

from __future__ import annotations

from tests.cli.conftest import Cli

POLICY = """
version = 1
[[identity]]
name = "notebook"
match = { path = "/m/s" }
capacity = { max = "8MiB" }
"""


def test_quotas_from_the_command_line(cli: Cli) -> None:
    nobody = cli("quota", "ls")
    assert nobody.code != 0 and "no agent runs" in nobody.err
    assert cli("cat", "/m/s/000.bin").code == 0
    told = cli("quota", "ls")
    assert told.code == 0 and "nobody's capacity is bounded" in told.err
    assert cli("qos", "apply", "--yes", "-", given=POLICY.encode()).code == 0
    assert cli("cat", "/m/s/001.bin", "/m/s/002.bin").code == 0
    found = {one["identity"]: one for one in cli("quota", "ls", "--json").json["quotas"]}
    assert found.keys() == {"default", "notebook"}
    notebook = found["notebook"]
    assert notebook["max_bytes"] == 8 << 20 and 0 < notebook["used_bytes"] <= 8 << 20
    header, *rows = cli("quota", "ls").lines
    assert header.split()[:2] == ["identity", "used"] and "8.0 MiB" in rows[-1]

    assert cli("quota", "set", "notebook", "max=9MiB", "--for", "1h").code == 0
    rows = cli("quota", "ls").lines
    assert "9.0 MiB" in rows[-1]
    wrong = cli("quota", "set", "notebook", "most=9MiB")
    assert wrong.code == 2 and "pin_max" in wrong.err
    unknown = cli("quota", "set", "somebody", "max=9MiB")
    assert unknown.code != 0 and "somebody" in unknown.err

    clean = cli("quota", "check", "--repair")
    assert (clean.code, clean.lines) == (0, ["clean"])
    assert cli("quota", "check", "--json").json == {"problems": [], "repaired": False}
    assert cli("qos", "unset", "notebook").code == 0
    assert "8.0 MiB" in cli("quota", "ls").lines[-1]
    assert cli("agent", "stop").code == 0
