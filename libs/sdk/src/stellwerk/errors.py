"""The one exception of the SDK. Standard library only: it is raised inside runs too."""


class StellwerkError(Exception):
    """Something that the platform refused or could not do.

    `reason` is a stable code in UPPER_SNAKE_CASE (docs/errors.md), `message` a sentence for a person,
    `cure` what to do about it. `code` is the name of the gRPC status code ("NOT_FOUND", …), `trace_id`
    the W3C trace of the request, "" if there was none.
    """

    def __init__(
        self, reason: str, message: str, cure: str = "", *, code: str = "UNKNOWN", trace_id: str = ""
    ) -> None:
        super().__init__(reason, message, cure)
        self.reason = reason
        self.message = message
        self.cure = cure
        self.code = code
        self.trace_id = trace_id

    def __str__(self) -> str:
        return f"{self.reason}: {self.message} {self.cure}".rstrip()


def invalid(reason: str, message: str, cure: str) -> StellwerkError:
    """An error in what the caller gave."""
    return StellwerkError(reason, message, cure, code="INVALID_ARGUMENT")
