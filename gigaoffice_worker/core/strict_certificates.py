"""What Python 3.13 and newer refuse of a certificate that older ones take: it must keep to every word of RFC 5280."""

from __future__ import annotations

from typing import Final

# OpenSSL's numbers for what is looked at with X509_V_FLAG_X509_STRICT, from an authority that does not say that it is
# one (79) over a missing Authority Key Identifier (85) to parameters of a curve that are spelt out (94).
_STRICT: Final = range(79, 95)

HINT: Final = (
    "Python 3.13 and newer ask for what RFC 5280 asks for: an Authority Key Identifier in the certificate; a Subject "
    "Key Identifier, keyUsage and critical basicConstraints in the authority's. Have them issued anew; Python 3.12 "
    "takes those that only lack these."
)


def is_strictness(verify_code: int) -> bool:
    """Tell whether a certificate was refused for its form alone, by OpenSSL's `verify_code`."""
    return verify_code in _STRICT
