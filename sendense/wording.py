"""What validation says of a value that cannot be right, in this project's words: users know settings and options."""

import re

_WORDS = {
    r"Value error, ": "",
    r"Input should be greater than or equal to (\S+)": r"is less than \1",
    r"Input should be less than or equal to (\S+)": r"is more than \1",
    r"Input should be greater than (\S+)": r"is not more than \1",
    r"Input should be less than (\S+)": r"is not less than \1",
    r"Input should be a valid integer\b.*": "is no whole number",
    r"Input should be a valid number\b.*": "is no number",
    r"Input should be a valid boolean\b.*": "is neither true nor false",
    r"Input should be a valid (string|list)\b.*": r"is no \1",
    r"Input should be ('.*)": r"is none of \1",
    r"String should match pattern .*": "does not have the form that it should",
    r"String should have at least 1 character": "is empty",
    r"(?:String|List) should have at most (\d+) (character|item)s?.*": r"may have at most \1 \2s",
    r"Extra inputs are not permitted": "is not known here",
    r"Field required": "is missing",
}


def plain_words(text: str) -> str:
    """A message of pydantic's, or one of a command line that has it in it; others as they are."""
    for pattern, words in _WORDS.items():
        text = re.sub(pattern, words, text)
    return text
