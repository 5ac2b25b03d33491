"""The one exception type for bad input from outside: a recipe, a file, a row, a checkpoint, a panel."""


class InputError(ValueError):
    """Bad input. The message is one line: which file, line, row or key; what is wrong; what is allowed.

    Verbs print it as `error: ...` and exit with status 2; embedders may catch it as a `ValueError`.
    """
