"""The one exception of the launcher, so that every caller can show what happened and what to do."""


class LauncherError(Exception):
    """A start, stop or look-up that cannot be done.

    `reason` is a stable code in UPPER_SNAKE for scripts, `message` says what happened, and `cure` says
    what the person can do about it.
    """

    def __init__(self, reason: str, message: str, cure: str) -> None:
        super().__init__(f"{message} {cure}".strip())
        self.reason = reason
        self.message = message
        self.cure = cure

    def as_dict(self) -> dict[str, str]:
        """The three parts, for handing the error from a child process to its parent."""
        return {"reason": self.reason, "message": self.message, "cure": self.cure}
