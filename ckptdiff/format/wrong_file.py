"""What lies in the place of a weight file that is none: a pointer to it, or what a server said instead of sending it."""

from __future__ import annotations

import re

HEAD = 1024
"""How many bytes of a file tell what it is."""

FETCH = "fetch the file again, logged in where it is gated, for example with: hf download ORG/NAME FILE --local-dir FOLDER"
POINTER = "a {} pointer, not the file itself: run {} in its folder"
SENT = "{}, which a server sent instead of the file: " + FETCH

KNOWN = (
    (rb"version https://(?:git-lfs|hawser)\.", POINTER.format("Git LFS", "git lfs pull"), None),
    (rb"(?:(?:\.\./)*\.git)?/annex/", POINTER.format("git-annex", "git annex get ."), None),
    (rb"# xet version", POINTER.format("Xet", "git xet checkout"), None),
    (rb"<(?:!doctype html|html|head|body)\b", SENT.format("an HTML page"), rb"<title>\s*([^<]{1,80})"),
    (rb"<\?xml|<Error>", SENT.format("an XML message"), rb"<Code>\s*([^<]{1,80})"),
    (rb'\{\s*"(?:error|message|msg|detail|status|code|success|reason)', SENT.format("a JSON message"), rb':\s*"([^"]{1,80})'),
    (
        rb"(?:entry |repository )?not found|invalid (?:username|credentials)|unauthori[sz]ed|access |forbidden|too many ",
        SENT.format("a message"),
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
"""Beginnings of files (regular expressions, in any case), what these are and what to do, and what to quote of them."""


def impostor(head: bytes) -> str | None:
    """What a file with these first bytes is instead of weights, and what to do; None if it is nothing known."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    for start, what, quoted in KNOWN:
        if re.match(start, text, re.I):
            found = re.search(quoted, text, re.I) if quoted else None
            what, comma, rest = what.partition(",")
            said = f' ("{found[1].decode(errors="replace").strip()}")' if found else ""
            return f"it is {what}{said}{comma}{rest}"
    return None
