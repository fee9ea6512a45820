"""The exceptions a user is meant to read."""


class UsageError(ValueError):
    """Something the user can put right: a setting, a path, a file.

    The message is a single line that names the field and its value, says what is
    wrong, lists the choices and gives the remedy. `main.py` prints it without a
    traceback; every other exception is a defect of the program.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on, such as one whose loss is no longer finite.

    The message is a single line, printed like a `UsageError`.
    """


class InterruptionError(Exception):
    """The user or a scheduler has asked the program to end.

    The message is a single line.

    Attributes:
      status: with which the program exits, 128 and the number of the signal.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
