"""Secrets in URLs, which are kept in the memory of this process and nowhere else.

The query of a web address is often a signature, and `user:password@` may stand before a host. What
the catalog, manifests, reports and messages have is the URL without both: its identity.
"""

import re

# In other schemes, what stands before an @ is no user, as in hf://datasets/NAME@REVISION.
_WITH_USERS = re.compile(
    r"^(?P<scheme>https?|ftps?|sftp|ssh|smb|webdavs?)://(?:[^/@?#]*@)?", re.IGNORECASE
)
_WITH_QUERIES = re.compile(r"^https?://", re.IGNORECASE)
_addresses: dict[str, str] = {}  # of this process: identity -> URL with its secrets


def hide_credentials(location: str) -> str:
    """A location without query, user and password."""
    identity = _WITH_USERS.sub(r"\g<scheme>://", location)
    if _WITH_QUERIES.match(identity):
        identity = re.split(r"[?#]", identity, maxsplit=1)[0]
    return identity


def remember_credentials(location: str) -> str:
    """The identity of a location, which this process opens with its secrets from now on."""
    identity = hide_credentials(location)
    if identity != location:
        _addresses[identity] = location
    return identity


def reveal_credentials(identity: str) -> str:
    """The URL to open: with the secrets that were given for it in this process."""
    return _addresses.get(identity, identity)
