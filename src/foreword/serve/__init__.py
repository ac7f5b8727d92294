"""The HTTP server: OpenAI's API over an engine, one prefix per request."""

from foreword.serve.app import ServeOptions, create_app

__all__ = ["ServeOptions", "create_app"]
