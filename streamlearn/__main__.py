"""``python -m streamlearn``: the command line."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    from streamlearn.cli import app

    app(prog_name="streamlearn")


if __name__ == "__main__":
    main()
