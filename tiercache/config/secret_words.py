"""Recognise secrets, so that the configuration can refuse them without printing them."""

from __future__ import annotations

import re

# Names that a credential goes by in some SDK or fsspec filesystem, without "_" and "-".
_NAMES = frozenset(
    {
        "accesskey", "accesskeyid", "accesstoken", "accountkey", "apikey", "authtoken",
        "awsaccesskeyid", "awssecretaccesskey", "awssessiontoken", "azurestorageaccountkey",
        "azurestoragesastoken", "clientsecret", "connectionstring", "credential", "credentials",
        "key", "passphrase", "passwd", "password", "privatekey", "refreshtoken", "sas", "saskey",
        "sastoken", "secret", "secretaccesskey", "secretkey", "serviceaccountkey", "sessiontoken",
        "sharedaccesssignature", "storageaccountkey", "token",
    }
)  # fmt: skip
# What gcsfs calls token and is the name of a method.
_METHODS = frozenset({"anon", "cloud", "google_default"})
_VALUES = (
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),  # AWS access key id
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    re.compile(r'"private_key"\s*:'),  # a Google service account file
    re.compile(r"(?:^|[?&;])sig=[A-Za-z0-9%+/=]{16,}"),  # Azure shared access signature
    re.compile(r"(?i)AccountKey=|SharedAccessSignature="),  # Azure connection string
    re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}==(?![A-Za-z0-9+/=])"),  # Azure account key
    re.compile(r"\bya29\.[A-Za-z0-9_-]{20,}"),  # Google access token
    re.compile(r"\bAIza[A-Za-z0-9_-]{35}\b"),  # Google API key
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}\b"),
    re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    re.compile(r"://[^/@:\s]+:[^/@\s]+@"),  # user:password@host
)
_AWS_SECRET = re.compile(r"[A-Za-z0-9/+]{40}")


def is_secret_name(name: str, value: object) -> bool:
    """Return whether a key of this name is where a credential goes."""
    plain = name.lower().replace("_", "").replace("-", "").replace(".", "")
    if plain not in _NAMES:
        return False
    return not (plain == "token" and value in _METHODS)


def is_secret_value(value: object) -> bool:
    """Return whether the text looks like a key, a token, a signature or a private key."""
    if not isinstance(value, str):
        return False
    return any(pattern.search(value) for pattern in _VALUES) or _is_aws_secret(value)


def _is_aws_secret(value: str) -> bool:
    """Forty characters of base64. Paths begin with a slash, and a hash or a name of that length
    mostly lacks one of the three kinds of character; of random keys one in 1,500 does."""
    return (
        _AWS_SECRET.fullmatch(value) is not None
        and not value.startswith("/")
        and any(char.isupper() for char in value)
        and any(char.islower() for char in value)
        and any(char.isdigit() for char in value)
    )
