"""A pass and a strategy for moeify, as a package of its own (docs/writing-a-pass.md)."""
