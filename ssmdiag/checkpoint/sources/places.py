"""Address → the place it is in and the path there. Asks nothing; each kind of place has a module."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from ssmdiag.checkpoint.sources.place import Place

_HUB = re.compile(r"([^/@]+(?:/[^/@]+)?)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?")
"""org/model@revision/path; a model of the hub's first days has no org."""


def place_of(address: str) -> tuple[Place, str]:
    """Return the place that an address is in, and the path within it."""
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    if scheme == "hf":
        from ssmdiag.checkpoint.sources.hub import Hub

        found = _HUB.fullmatch(rest.strip("/"))
        return (Hub(found[1], found[2]), found[3] or "") if found else (Hub(rest, None), "")
    if scheme in ("http", "https"):
        from ssmdiag.checkpoint.sources.website import Website

        return Website(address), urlsplit(address).path
    from ssmdiag.checkpoint.sources.buckets import Buckets

    return Buckets(scheme, rest.partition("/")[0]), rest.partition("/")[2]
