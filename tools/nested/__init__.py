"""The parts of tools/nested_host.py."""
