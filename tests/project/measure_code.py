"""Prints figures of the size and the wiring of the package, run as a script.

Code lines are counted without docstrings, comments and blank lines.
"""

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "greendrop"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source):
    """Count the lines that have code."""
    skipped = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            skipped.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = set()
    layout = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - skipped)


def count(source):
    """Count code lines, lambdas, uses of `Any`, and callables in constructors."""
    counts = Counter(modules=1, lines=code_lines(source))
    for node in ast.walk(ast.parse(source)):
        counts["lambdas"] += isinstance(node, ast.Lambda)
        counts["Any"] += isinstance(node, ast.Name) and node.id == "Any"
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = [*node.args.args, *node.args.kwonlyargs]
            counts["callables in constructors"] += sum(
                each.annotation is not None
                and "Callable" in ast.unparse(each.annotation)
                for each in arguments
            )
    return counts


def measure():
    """Return the sums over the package."""
    total = Counter()
    for path in PACKAGE.rglob("*.py"):
        total += count(path.read_text())
    return total


def main():
    """Print the sums."""
    for name, number in measure().items():
        print(f"{name:26} {number:6}")


if __name__ == "__main__":
    main()
