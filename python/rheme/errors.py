"""The errors that rheme raises on purpose."""


class RhemeError(Exception):
    """Any error that rheme raises on purpose."""


class InputError(RhemeError, ValueError):
    """A mistake in what the user gave. The message says what is wrong, where (file:line:column), and what to do."""
