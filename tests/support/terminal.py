"""`cgpt chat` in a pseudo-terminal."""

import os
import pty
import select
import sys

import pytest


class Session:
    """`cgpt chat` in a terminal of its own."""

    def __init__(self, before="", options=()):
        """before: statements that the process runs first. options: more of the command line."""
        command = ["chat", "--date", "", *map(str, options)]
        program = f"{before}\nimport sys\nfrom cgpt.cli import main as cli\nsys.exit(cli.main({command}))"
        pid, self.file = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-c", program])
        self.pid, self.seen = pid, ""

    def type(self, text):
        os.write(self.file, text.encode())

    def until(self, text, patience=60, again=""):
        """What appeared up to and with `text`, since the last such call. again: typed each second that passes."""
        while text not in self.seen:
            if not select.select([self.file], [], [], 1)[0]:
                patience -= 1  # in turns of a second, as a machine may stand still for a while
                assert patience, f"no {text!r} in {self.seen!r}"
                self.type(again)
                continue
            try:
                self.seen += os.read(self.file, 4096).decode()
            except OSError:  # the other side is gone
                pytest.fail(f"ended without {text!r}: {self.seen!r}")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def status(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
