"""Text of strangers, made fit to be shown: nothing hidden, nothing that commands a terminal."""

from __future__ import annotations

_INVISIBLE = {
    *(0x00AD, 0x061C, 0x200B, 0x200C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFFF9, 0xFFFC),
}


def visible(text: str) -> str:
    """Control characters, direction overrides and lone surrogates made visible; line breaks and tabs kept."""
    return "".join(_shown(char) for char in text)


def one_line(text: str) -> str:
    """As `visible`, with every run of white space as one space: a message that cannot pose as two."""
    return visible(" ".join(text.split()))


def _shown(char: str) -> str:
    code = ord(char)
    if char in "\n\t" or (0x20 <= code < 0x7F):
        return char
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code < 0xA0 or code in _INVISIBLE or 0xD800 <= code < 0xE000 or code >= 0xE0000:
        return f"⟨U+{code:04X}⟩"
    return char
