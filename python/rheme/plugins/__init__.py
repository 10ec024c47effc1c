"""The tasks that come with the package. Nothing imports them: they are found by entry point, like a stranger's."""
