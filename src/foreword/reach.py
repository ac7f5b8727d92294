"""Whether the Hub answers: asked once, before clients that would try again and again for a minute."""

from __future__ import annotations

SECONDS = 4.0
"""How long the Hub may take to answer."""


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


def is_out_of_reach(model: str, revision: str | None = None) -> bool:
    """Whether a model by its name on the Hub can be had from neither the Hub nor its cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        copy = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # it is no name on the Hub; what is wrong with it is for others to say
        return False
    return not isinstance(copy, str) and out_of_reach()
