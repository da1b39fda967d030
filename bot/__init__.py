"""Magpie's core: from a webhook to a reply. It knows the adapter contract and no platform's name."""

__version__ = "0.1.0"
