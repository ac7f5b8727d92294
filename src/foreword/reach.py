"""Whether the Hub answers: asked once, before clients that would try again and again for a minute.

A name that can only be a folder's is not for the Hub at all.
"""

from __future__ import annotations

import os

from foreword.errors import BackboneError

SECONDS = 4.0
"""How long the Hub may take to answer."""


def check_path(name: str, remedy: str = "check the path") -> None:
    """Check that a model's name is a folder that is there, or may be a name on the Hub.

    There a name is ``name`` or ``owner/name``; all that begins or goes on otherwise is a path.

    Raises:
        BackboneError: It is a path, and nothing is there; the message ends with the remedy.
    """
    begins = name.startswith((".", "/", "~")) or os.path.isabs(name)
    is_path = begins or "\\" in name or name.count("/") > 1 or name.endswith("/")
    if not is_path or os.path.exists(name):
        return
    home = os.path.expanduser(name)
    if home != name and os.path.exists(home):
        remedy = f"'~' is spelled out by shells alone, so give {home}"
    raise BackboneError(f"cannot load backbone {name!r}: there is no such folder; {remedy}")


def out_of_reach() -> bool:
    """Whether the Hub does not answer, although offline mode (``HF_HUB_OFFLINE``) is off.

    transformers and datasets ask the Hub's client, which asks for each file six times, with naps of up
    to 8 seconds between. Where it is out of reach they should look into their caches alone.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # no such host, no route, no answer in time: kinds of the client's own
        return True
    return False


def answers() -> bool:
    """Whether the Hub answers; in offline mode it is not asked."""
    from huggingface_hub import constants

    return not constants.is_offline_mode() and not out_of_reach()


def is_out_of_reach(model: str, revision: str | None = None) -> bool:
    """Whether a model by its name on the Hub can be had from neither the Hub nor its cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        copy = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # it is no name on the Hub; what is wrong with it is for others to say
        return False
    return not isinstance(copy, str) and out_of_reach()
