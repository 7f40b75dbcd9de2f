"""The kit of plugin authors: contract tests of components, and fixtures to test against (docs/plugins/testing.md)."""
