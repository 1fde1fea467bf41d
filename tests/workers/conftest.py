"""Runs the command in the folder of a test."""

from cli.conftest import kept, moeify

__all__ = ["kept", "moeify"]
