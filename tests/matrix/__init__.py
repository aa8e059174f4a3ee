"""The matrix: short tests on each Python, library, event loop and tracing agent."""
