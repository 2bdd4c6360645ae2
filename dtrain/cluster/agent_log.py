"""What torchrun's agent says on a node after a program of ours has said why it failed: kept, but not on the screen."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from pathlib import Path

from dtrain.files import write_whole

_EXPLAINS = "dtrain: error: "
_AGENT = re.compile(r"[WE]\d{4} .*torch/distributed/elastic/|Traceback \(most recent call last\):$")


class AgentLog:
    """Of all nodes of a cluster; each node's lines come in their order, from a thread of its own.

    `explanation` is the first line with which a program of ours said why it failed, or None.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.explanation: str | None = None
        self._holding: set[str] = set()
        self._held: list[str] = []

    def shows(self, node: str, line: str) -> bool:
        """Whether a line goes to the screen. After an explanation, all that follows the agent's first line does not."""
        with self._lock:
            if line.startswith(_EXPLAINS):
                self.explanation = self.explanation or line
                return True
            if self.explanation is not None and _AGENT.match(line):
                self._holding.add(node)
            if node not in self._holding:
                return True
            self._held.append(f"[{node}] {line}\n")
            return False

    def write(self) -> Path | None:
        """The file with what was held back; None where nothing was."""
        if not self._held:
            return None
        path = Path(tempfile.gettempdir()) / f"dtrain-cluster-{os.getpid()}.log"
        write_whole(path, "".join(self._held))
        return path
