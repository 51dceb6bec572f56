"""What looks like a secret is not published."""

from __future__ import annotations

import pytest

from ckptdiff.checkpoint.secrets import suspicious_content, suspicious_name


@pytest.mark.parametrize(
    "name", [".env", "a/.env", ".env.local", "server.pem", "ID_RSA", "id_ed25519.pub", ".netrc", "x/credentials.json", "token"]
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert suspicious_name(name)


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "environment.yml", "README.md", "keys.json"],
)
def test_common_names_are_fine(name: str) -> None:
    assert not suspicious_name(name)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'{"token": "hf_' + b"a" * 34 + b'"}', "a Hugging Face token"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nMII", "a private key"),
        (b"-----BEGIN PRIVATE KEY-----", "a private key"),
        (b"AWS=AKIA" + b"A1" * 8, "an AWS key"),
        (b"ghp_" + b"x" * 36, "a GitHub token"),
        (b"key sk-" + b"Q" * 48, "an API key"),
        (b"sk-ant-" + b"Q" * 48, "an API key"),
        (b"AIza" + b"x" * 35, "a Google API key"),
        (b"xoxb-1234567890-abc", "a Slack token"),
        (b"WANDB_API_KEY=" + b"0123456789" * 4, "a Weights & Biases key"),
    ],
)
def test_contents_of_secrets_are_known(data: bytes, what: str) -> None:
    assert suspicious_content(data) == what


@pytest.mark.parametrize(
    "data", [b"", b"hf_transfer is fast, hf_xet too", b'{"vocab": {"sk-": 5, "AKIA": 7}}', bytes(range(256)), b"risk-" + b"a" * 40]
)
def test_common_contents_are_fine(data: bytes) -> None:
    assert suspicious_content(data) is None
