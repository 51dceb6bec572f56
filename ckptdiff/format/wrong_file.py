"""Files that stand in the place of a weight file: a pointer to it, a server's message, or another format; told by their first bytes."""

from __future__ import annotations

import re

HEAD_BYTES = 1024
"""How many bytes of a file suffice to tell what it is."""

FETCH_AGAIN = "fetch the file again, logged in where it is gated, for example with: hf download ORG/NAME FILE --local-dir FOLDER"
_POINTER = "a {} pointer, not the file itself: run {} in its folder"
_MESSAGE = "{}, which a server sent instead of the file: " + FETCH_AGAIN

SIGNATURES = (
    (rb"version https://(?:git-lfs|hawser)\.", _POINTER.format("Git LFS", "git lfs pull"), None),
    (rb"(?:(?:\.\./)*\.git)?/annex/", _POINTER.format("git-annex", "git annex get ."), None),
    (rb"# xet version", _POINTER.format("Xet", "git xet checkout"), None),
    (rb"<(?:!doctype html|html|head|body)\b", _MESSAGE.format("an HTML page"), rb"<title>\s*([^<]{1,80})"),
    (rb"<\?xml|<Error>", _MESSAGE.format("an XML message"), rb"<Code>\s*([^<]{1,80})"),
    (rb'\{\s*"(?:error|message|msg|detail|status|code|success|reason)', _MESSAGE.format("a JSON message"), rb':\s*"([^"]{1,80})'),
    (
        rb"(?:entry |repository )?not found|invalid (?:username|credentials)|unauthori[sz]ed|access |forbidden|too many ",
        _MESSAGE.format("a message"),
        rb"([^\r\n]{1,80})",
    ),
    (
        rb"PK\x03\x04",
        "a zip archive, as torch.save writes: load it with torch.load(weights_only=True) and use safetensors",
        None,
    ),
    (rb"GGUF", "a GGUF file under another name", None),
    (rb"[{\[]", "a JSON text", None),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "compressed: unpack it first", None),
)
"""For each kind of file: how it begins (a regular expression, in any case), what it is and what to do, and what to quote of it."""


def describe_wrong_file(head: bytes) -> str | None:
    """What a file with these first bytes is instead of weights, and what to do, for a message; None if it is nothing known."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    for start, what, quoted in SIGNATURES:
        if re.match(start, text, re.I):
            quote = re.search(quoted, text, re.I) if quoted else None
            what, comma, rest = what.partition(",")
            said = f' ("{quote[1].decode(errors="replace").strip()}")' if quote else ""
            return f"it is {what}{said}{comma}{rest}"
    return None
