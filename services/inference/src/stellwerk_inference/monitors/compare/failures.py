"""Why a check could not be made."""


class CheckFailed(Exception):
    """A stable reason code, a sentence for a person and a cure, as in `Reason`."""

    def __init__(self, code: str, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.cure = cure
