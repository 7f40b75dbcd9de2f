"""Errors that a user can act on: where, what is wrong, and what to do.

Any other exception that leaves the program is a fault of harness; the command writes its traceback to a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


class HarnessError(Exception):
    """Bad input: a spec, a plugin or data. The program prints one line for it and exits with 2.

    Attributes:
        where: The file, line and column, or the key, as far as they are known.
        what: What is wrong there, in the user's words.
        hint: What to do about it.
    """

    exit_code = 2

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where, self.what, self.hint = where, what, hint
        super().__init__(where, what, hint)

    def lines(self) -> list[str]:
        """Return one line for each error."""
        text = f"{self.where}: {self.what}" + (f"; {self.hint}" if self.hint else "")
        return [" ".join(text.split())]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class ManyErrors(HarnessError):
    """Several errors that were found together, so that the user can fix them together."""

    def __init__(self, errors: Iterable[HarnessError]) -> None:
        self.errors = list(errors)
        first = self.errors[0]
        super().__init__(first.where, first.what, first.hint)

    def lines(self) -> list[str]:
        """Return the lines of all errors."""
        return [line for error in self.errors for line in error.lines()]


def located_errors(calls: Iterable[tuple[str, Callable[[], object]]]) -> Iterator[HarnessError]:
    """Call each function, and yield the error of bad input that it raises, at its location.

    Args:
        calls: Pairs (location, function).

    Raises:
        ComponentError: A function failed inside a component.
    """
    for where, function in calls:
        try:
            function()
        except ComponentError:
            raise
        except HarnessError as error:
            yield HarnessError(f"{where}: {error.where}", error.what, error.hint)


def raise_all(errors: Iterable[HarnessError]) -> None:
    """Raise the only error, or all different ones as one; do nothing when there is none."""
    collected = list({str(error): error for error in errors}.values())  # stages can have the same error
    if len(collected) == 1:
        raise collected[0]
    if collected:
        raise ManyErrors(collected)


class RunError(HarnessError):
    """A run that started and failed. Exit code 1; what it has written so far stays in its folder."""

    exit_code = 1


class ComponentError(RunError):
    """A failure inside a plugin's component. `where` names component, distribution, version and method.

    The original exception, if there is one, is its `__cause__`.
    """


class InvalidRow(Exception):
    """A row that is not a valid conversation.

    Attributes:
        what: What is wrong, as a predicate ("has no response").
        hint: How to fix it.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint
