"""streamlearn: raw logs in, sparse models out."""

__version__ = "0.1.0"
