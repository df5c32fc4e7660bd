"""Secrets are recognised by their form or by the environment, and what is no secret stays as it is."""

from __future__ import annotations

import pytest

from synfundus.redaction import MASK, environment_secrets, redact, secret_kind

SECRETS = {
    "access key": "AKIAQ4EXAMPLE7TESTAB",
    "temporary access key": "ASIAQ4EXAMPLE7TESTAB",
    "secret key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "session token": "IQoJb3JpZ2luX2VjEJr" + "A1b2C3d4" * 12,
    "signed URL": "https://bucket.s3.amazonaws.com/set?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=ab12cd34",
    "old signed URL": "https://bucket.s3.amazonaws.com/set?AWSAccessKeyId=abc&Signature=ab12cd34&Expires=1",
    "Hugging Face": "hf_abcdefghijABCDEFGHIJ0123456789abcd",
    "Weights & Biases": "0123456789abcdef0123456789abcdef01234567",
    "URL with password": "s3://user:passw0rd@bucket/x",
    "URL with token": "https://sometoken@host/x",
    "GitHub": "ghp_abcdefghijABCDEFGHIJ0123456789abcd",
    "signed token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    "named": "password=hunter22",
    "named in JSON": '"token": "abcdefgh"',
}
HARMLESS = [
    "/data/Images/cohort2024/latents",
    "s3://bucket/folder/set@2024/train",
    "file:///data/set",
    "0" * 64,
    "train/000000.tar#k7-000003",
    "unet.token_dim=64",
    "x" * 300,
    "k" * 128,
    "moments of shape (8, 16, 16) float16, expected (4, 2, 2)",
    "unexpected token: something in line 3",
    "tokens: 123456",
    "/home/a/.cache/huggingface/hub/models--x--y/snapshots/31f26fdeee1355a5c34592e401dd41e45d25a493/vae",
    "/scratch/projects/RetinaStudy2024/Latents/SetA512px/run1",
    "AWS_SECRET_ACCESS_KEY is not set",
    "half a key pair: AWS_SECRET_ACCESS_KEY is not set",
    "sample k7-000042: member .json does not match its checksum",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_recognised_and_cut_out(name: str) -> None:
    secret = SECRETS[name]
    assert secret_kind(secret)
    text = redact(f"cannot open '{secret}': refused", environment={})
    assert MASK in text
    assert text.startswith("cannot open '")
    for part in ("Q4EXAMPLE7TESTAB", "K7MDENG", "A1b2C3d4", "ab12cd34", "passw0rd", "sometoken", "hunter22", "MIIEow"):
        assert part not in text
    assert "abcdefgh" not in text
    assert redact(text, environment={}) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert secret_kind(text) == ""
    assert redact(text, environment={}) == text


def test_values_of_secret_variables_are_cut_out_whatever_they_look_like() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "plainwords",
        "MY_PASSWORD": "plainwords and more",
        "HF_TOKEN": "short",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/token",
        "AWS_PROFILE": "hospital",
    }
    assert environment_secrets(environment) == ["plainwords and more", "plainwords"]
    said = redact("plainwords and more, plainwords, hospital, /var/run/secrets/token, short", environment=environment)
    assert said == f"{MASK}, {MASK}, hospital, /var/run/secrets/token, short"
