"""Runs the checks of this directory against AMQP_URL and prints the Test
Anything Protocol, one line per check. Arguments choose checks by a part of
their name."""

import os
import sys
import unittest


class TapResult(unittest.TestResult):
    """Prints each result when it comes."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def _line(self, word, test, note=""):
        self.number += 1
        name = test.id().split(".", 1)[-1]
        print(f"{word} {self.number} - {name}{note}", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self._line("ok", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._line("ok", test, f" # SKIP {reason}")

    def _bad(self, test, err):
        self._line("not ok", test)
        for line in self._exc_info_to_string(err, test).splitlines():
            print(f"#   {line}", flush=True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._bad(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        self._bad(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._bad(subtest, err)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{part}*" for part in sys.argv[1:]] or None
    suite = loader.discover(here, pattern="check_*.py", top_level_dir=here)
    print("TAP version 13")
    result = TapResult()
    suite.run(result)
    print(f"1..{result.number}")
    return 0 if result.wasSuccessful() and result.number else 1


if __name__ == "__main__":
    sys.exit(main())
