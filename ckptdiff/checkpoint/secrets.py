"""Files that look like secrets: ``make`` leaves them out by name; ``push`` refuses them by name and by content."""

from __future__ import annotations

import re
from fnmatch import translate

SECRET_NAMES = (
    ".env*",
    "*.env",
    "*.pem",
    "*.key",
    "*.ppk",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    "_netrc",
    ".npmrc",
    ".pypirc",
    ".pgpass",
    ".my.cnf",
    ".s3cfg",
    ".boto",
    ".dockercfg",
    ".vault-token",
    ".htpasswd",
    ".git-credentials",
    "credentials",
    "*credentials.json",
    "hf_token",
    ".hf_token",
    "hf_token.txt",
    "client_secret*.json",
    "service_account*.json",
    "secrets.*",
    "stored_tokens",
    "token",
    "kaggle.json",
    "kubeconfig",
)
"""Globs of the names of files that hold keys and passwords."""
SECRET_FOLDERS = {".ssh", ".aws", ".gnupg", ".kube", ".docker"}
"""Folders whose files all count as secrets."""

SECRET_CONTENTS = (
    ("a Hugging Face token", rb"\bhf_[A-Za-z0-9]{30,}"),
    ("a private key", rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
    ("an AWS key", rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("a GitHub token", rb"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{60,}"),
    ("an API key", rb"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}"),
    ("a Google API key", rb"\bAIza[A-Za-z0-9_-]{35}"),
    ("a Slack token", rb"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    ("a Weights & Biases key", rb"(?i)wandb[_-]?api[_-]?key\W{1,4}[a-f0-9]{40}"),
)
"""Kinds of secrets, and regular expressions for them."""
_NAME_PATTERN = re.compile("|".join(map(translate, SECRET_NAMES)))
_CONTENT_PATTERNS = [(what, re.compile(pattern)) for what, pattern in SECRET_CONTENTS]


def suspicious_name(path: str) -> bool:
    """Whether a path is one under which keys and passwords are kept."""
    *folders, name = path.lower().removesuffix("/").split("/")
    return bool(SECRET_FOLDERS.intersection((*folders, name))) or _NAME_PATTERN.match(name) is not None


def suspicious_content(data: bytes) -> str | None:
    """The kind of secret that a file's bytes seem to hold; None if there is none."""
    return next((what for what, pattern in _CONTENT_PATTERNS if pattern.search(data)), None)
