"""A griffe extension: in this code fields and arguments say what they are in a comment on their own line, shapes among
it. The API reference takes such a comment for their description."""

import ast
import io
import re
import tokenize

import griffe

SECTION = re.compile(r"^ *(Args|Raises|Returns|Yields):$", re.M)


class FieldComments(griffe.Extension):
    """Descriptions from comments, where there is no docstring."""

    def on_attribute_instance(self, *, node, attr, agent, **kwargs):
        """Of a field: behind it, or on the lines above it."""
        lines = attr.lines_collection[attr.filepath] if attr.lineno else []
        if attr.docstring or not lines:
            return
        text = _comment(lines[attr.endlineno - 1]) or _above(lines, attr.lineno)
        if text:
            attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)

    def on_function_instance(self, *, node, func, agent, **kwargs):
        """Of an argument that stands on a line of its own."""
        if not isinstance(node, ast.FunctionDef) or func.docstring is None:
            return
        lines = func.lines_collection[func.filepath]
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        named = [(a.arg, _comment(lines[(a.annotation or a).end_lineno - 1])) for a in arguments if a.arg != "self"]
        shared = {a.lineno for a in arguments if sum(a.lineno == b.lineno for b in arguments) > 1}
        own = {a.arg for a in arguments if a.lineno not in shared and a.lineno > node.lineno}
        said = "".join(f"\n    {name}: {text}" for name, text in named if text and name in own)
        if said:
            func.docstring.value = _with_arguments(func.docstring.value, said)


def _with_arguments(docstring, said):
    """Under "Args:", which is made before the first section where there is none."""
    if "\nArgs:\n" in docstring:
        return docstring.replace("\nArgs:", f"\nArgs:{said}", 1)
    first = SECTION.search(docstring)
    head, tail = (docstring[: first.start()], docstring[first.start() :]) if first else (docstring, "")
    return f"{head.rstrip()}\n\nArgs:{said}\n\n{tail}"


def _comment(line):
    """The comment that ends a line of source; "" where there is none, or one for a tool."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip()).readline))
    except (tokenize.TokenError, IndentationError):  # an open bracket: the comment was read before
        tokens = []
    found = [t.string for t in tokens if t.type == tokenize.COMMENT] or re.findall(r"  (# [^#\"']*)$", line)
    text = found[-1].lstrip("# ") if found else ""
    return "" if re.match(r"(type: ignore|noqa|fmt: )", text) else text


def _above(lines, lineno):
    """The comment lines right above a line, as one text."""
    text = []
    for line in reversed(lines[: lineno - 1]):
        if not line.strip().startswith("# "):
            break
        text.append(line.strip()[2:])
    return " ".join(reversed(text))
