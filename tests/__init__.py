"""The tests, by the rooms of what they test, and what they share: problems, tables, the second implementation."""
