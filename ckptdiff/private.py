"""Files that look like secrets, which must not be published."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

NAMES = (
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    "_netrc",
    ".npmrc",
    ".pypirc",
    ".htpasswd",
    ".git-credentials",
    "credentials",
    "credentials.json",
    "client_secret*.json",
    "service_account*.json",
    "secrets.*",
    "stored_tokens",
    "token",
    "kubeconfig",
)

CONTENTS = (
    ("a Hugging Face token", rb"\bhf_[A-Za-z0-9]{30,}"),
    ("a private key", rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
    ("an AWS key", rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("a GitHub token", rb"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{60,}"),
    ("an API key", rb"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}"),
    ("a Google API key", rb"\bAIza[A-Za-z0-9_-]{35}"),
    ("a Slack token", rb"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    ("a Weights & Biases key", rb"(?i)wandb[_-]?api[_-]?key\W{1,4}[a-f0-9]{40}"),
)
PATTERNS = [(what, re.compile(pattern)) for what, pattern in CONTENTS]


def suspicious_name(path: str) -> bool:
    """Whether a file's name is one that keys and passwords are kept under."""
    name = path.rpartition("/")[2].lower()
    return any(fnmatchcase(name, pattern) for pattern in NAMES)


def suspicious_content(data: bytes) -> str | None:
    """What a file's bytes seem to hold that is secret, or None."""
    return next((what for what, pattern in PATTERNS if pattern.search(data)), None)
