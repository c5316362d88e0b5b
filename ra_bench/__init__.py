"""ra-bench: which index should serve an LLM's attention, and what it costs."""

__version__ = "0.1.0"
