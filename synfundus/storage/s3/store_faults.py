"""Classify faults of an object store: retry, not found, or stop and say what to check.

Messages contain only the error code of an answer, and exceptions are not chained: answers quote key ids, signatures
and signed requests.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from synfundus.errors import StorageError


class Verdict(Enum):
    """What to do about a fault."""

    RETRY = "retry"
    NOT_FOUND = "not found"
    BEYOND_END = "beyond the end"
    CHANGED = "changed"
    RENEW = "renew the credentials once, then stop"
    STOP = "stop"


@dataclass(frozen=True)
class Fault:
    """A fault, with text that is safe to print.

    Attributes:
        verdict: What to do about it.
        text: What happened.
        hint: What the user can check.
        overloaded: Whether the store asks for fewer requests.
    """

    verdict: Verdict
    text: str
    hint: str = ""
    overloaded: bool = False


class WrongAnswer(OSError):
    """An answer with another length or range than requested; the request is retried."""


class BeyondEnd(Exception):
    """A range that starts at or after the end of the object."""


class ObjectChanged(Exception):
    """The object was replaced between two requests of one read."""


_CHECK_CREDENTIALS = (
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or the role of this machine; "
    "`synfundus doctor` shows which of them it finds"
)
_CHECK_PERMISSIONS = (
    "check the permissions of these credentials for this bucket; without the permission to list, "
    "a store gives the same answer for objects that do not exist"
)
_LOG_IN_AGAIN = "get new credentials (a new AWS_SESSION_TOKEN, a new login of the profile) and run the command again"

_FINAL_CODES: dict[str, tuple[str, str]] = {
    "InvalidAccessKeyId": ("the store does not know this access key", _CHECK_CREDENTIALS),
    "SignatureDoesNotMatch": ("the secret key does not match the access key", _CHECK_CREDENTIALS),
    "AuthorizationHeaderMalformed": ("the request was signed for another region", "check AWS_DEFAULT_REGION"),
    "AccessDenied": ("access denied", _CHECK_PERMISSIONS),
    "AllAccessDisabled": ("access denied", _CHECK_PERMISSIONS),
    "AccountProblem": ("the store refuses this account", _CHECK_CREDENTIALS),
    "NotSignedUp": ("the store refuses this account", _CHECK_CREDENTIALS),
    "NoSuchBucket": ("the bucket does not exist", "check the bucket's name and AWS_ENDPOINT_URL"),
    "PermanentRedirect": ("the bucket is in another region", "check AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"),
    "IllegalLocationConstraintException": ("the bucket is in another region", "check AWS_DEFAULT_REGION"),
    "RequestTimeTooSkewed": ("the clocks of this machine and of the store differ", "set this machine's clock"),
    "InvalidObjectState": ("the object is archived", "restore it from the archive first"),
    "403": ("access denied", _CHECK_PERMISSIONS),
}
_RENEWABLE_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "InvalidToken",
    "InvalidTokenId",
    "RequestExpired",
}
_TRANSIENT_CODES = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
    "408",
    "409",
    "429",
}
_CREDENTIAL_ERRORS = {
    "NoCredentialsError": "there are no credentials",
    "PartialCredentialsError": "the credentials are incomplete",
    "ProfileNotFound": "the profile of AWS_PROFILE does not exist",
    "ConfigParseError": "the AWS configuration file cannot be read",
    "CredentialRetrievalError": "the credentials could not be fetched",
    "TokenRetrievalError": "the credentials could not be fetched",
    "UnauthorizedSSOTokenError": "the login of the profile has expired",
    "SSOTokenLoadError": "the login of the profile has expired",
    "LoginRefreshRequired": "the login of the profile has expired",
}
_PRINTABLE_CODE = re.compile(r"^[A-Za-z0-9.]{1,64}$")


def endpoint_name() -> str:
    """Return the host of the store, without secrets."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return "AWS S3"
    return urlsplit(url).netloc.rsplit("@", 1)[-1] or "AWS_ENDPOINT_URL"


def classify(error: BaseException) -> Fault:
    """Classify a fault; what is not known to be final is retried."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        return _classify_answer(response)
    names = {kind.__name__ for kind in type(error).__mro__}
    for name, text in _CREDENTIAL_ERRORS.items():
        if name in names:
            verdict = Verdict.RENEW if "retriev" in name.lower() or "SSO" in name else Verdict.STOP
            return Fault(verdict, text, _CHECK_CREDENTIALS)
    if isinstance(error, RecursionError):
        return Fault(Verdict.STOP, *_FINAL_CODES["PermanentRedirect"])
    if "_InvalidEndpoint" in names:
        return Fault(Verdict.STOP, "the address of the store is not valid", "check AWS_ENDPOINT_URL")
    if "SSLError" in names and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Fault(
            Verdict.STOP, "the certificate of the store is not trusted", "check AWS_CA_BUNDLE and the endpoint"
        )
    if names & {"ParamValidationError", "InvalidRegionError"}:
        return Fault(Verdict.STOP, "not a valid bucket, key or region", "check the location and AWS_DEFAULT_REGION")
    if isinstance(error, WrongAnswer):
        return Fault(Verdict.RETRY, str(error))
    return Fault(Verdict.RETRY, _CONNECTION_FAULTS.get(type(error).__name__, type(error).__name__))


_CONNECTION_FAULTS = {
    "EndpointConnectionError": "no connection",
    "ConnectionClosedError": "the connection was closed",
    "ConnectTimeoutError": "no connection in time",
    "ReadTimeoutError": "no bytes in time",
    "AioReadTimeoutError": "no bytes in time",
    "FSTimeoutError": "no answer in time",
    "TimeoutError": "no answer in time",
    "IncompleteReadError": "the answer was truncated",
    "ResponseStreamingError": "the answer was truncated",
    "ClientPayloadError": "the answer was truncated",
    "ResponseParserError": "not an S3 answer",
}


def _classify_answer(response: dict[str, Any]) -> Fault:
    code = str(response["Error"].get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    shown = f"{code} ({status})" if _PRINTABLE_CODE.match(code) else str(status)
    if code in _RENEWABLE_CODES:
        return Fault(Verdict.RENEW, f"the credentials have expired: {shown}", _LOG_IN_AGAIN)
    if code in _FINAL_CODES:
        text, hint = _FINAL_CODES[code]
        return Fault(Verdict.STOP, f"{text}: {shown}", hint)
    if code in {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}:
        return Fault(Verdict.NOT_FOUND, shown)
    if code in {"InvalidRange", "416"}:
        return Fault(Verdict.BEYOND_END, shown)
    if code in {"PreconditionFailed", "412"}:
        return Fault(Verdict.CHANGED, shown)
    if code in _TRANSIENT_CODES or status >= 500 or not status:
        overloaded = status in {429, 503} or code.startswith(("SlowDown", "Throttling"))
        return Fault(Verdict.RETRY, shown, overloaded=overloaded)
    if status in {401, 403}:
        return Fault(Verdict.STOP, f"access denied: {shown}", _CHECK_PERMISSIONS)
    return Fault(Verdict.STOP, f"the store refuses the request: {shown}", "check the location and AWS_ENDPOINT_URL")


def final_error(action: str, url: str, fault: Fault) -> StorageError:
    """Return the error of a request that cannot succeed."""
    return StorageError(f"cannot {action}: {fault.text}", where=url, hint=f"{fault.hint} (endpoint: {endpoint_name()})")
