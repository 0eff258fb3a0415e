"""Runs one document's blocks in order, in the process that the test starts for it.

``python block_runner.py FILE``: FILE holds a JSON list of [language, code, document, line]. Python
blocks share one namespace; bash blocks run with ``-euo pipefail``. Exits with 1 at the first block
that fails, saying which.
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


def main(file: str) -> int:
    # The module itself, as of a script: what a block defines can be pickled by its name.
    names = vars(sys.modules["__main__"])
    for language, code, document, line in json.loads(Path(file).read_text()):
        print(f"----- {document}:{line} ({language})", flush=True)
        if language == "python":
            if not run_python(code, document, line, names):
                return 1
        elif subprocess.run(["bash", "-euo", "pipefail", "-c", code]).returncode:
            print(f"FAILED: {document}:{line}", flush=True)
            return 1
    return 0


def run_python(code: str, document: str, line: int, names: dict[str, Any]) -> bool:
    # Empty lines in front make a traceback name the document's own lines.
    compiled = compile("\n" * (line - 1) + code, document, "exec")
    try:
        exec(compiled, names)
    except Exception:
        traceback.print_exc()
        print(f"FAILED: {document}:{line}", flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
