"""What every page and every answer says of itself."""

__all__ = ["NOTICE"]

NOTICE = (
    "A teaching and research tool, no medical device: nothing here is medical advice, and no answer of these models "
    "may guide the care of a patient."
)
