"""Whether a template only copies contents, told by its syntax tree.

Most do: contents are written, joined to constants and perhaps trimmed, and what is written around them
depends on roles and places alone. The text of a chat without tools is then its filled skeleton, and rendering
it would only tell what is known; that is most of what a short chat costs. Whatever this reader does not know
counts as looking into the contents (Qwen 3 does: ``'</think>' in content``), and such chats are rendered.

Contents are taken to be without white space around them, and the skeleton's to be empty where they are: so
trimming changes nothing, and whether a content is empty may be asked.
"""

from jinja2 import nodes

_LOOP = frozenset({"first", "last", "index", "index0", "revindex", "revindex0", "length"})
_TYPE_TESTS = frozenset({"defined", "undefined", "none", "string", "mapping", "iterable", "sequence"})
_TRIMMING = frozenset({"strip", "lstrip", "rstrip"})
_DICT = frozenset(dir(dict))
TOOL_ROLES = frozenset({"tool", "ipython"})


def only_copies(tree: nodes.Template) -> bool:
    """Whether the text of chats without tools depends on their contents only by holding them."""
    return _Reader(tree).passes(tree.body)


class _Reader:
    """Follows messages and contents through the template; names are taken together over all scopes."""

    def __init__(self, tree: nodes.Template) -> None:
        self._lists = {"messages"}
        self._messages: set[str] = set()
        self._contents: set[str] = set()
        known = -1
        while known != (known := len(self._lists) + len(self._messages) + len(self._contents)):
            for loop in tree.find_all(nodes.For):
                if isinstance(loop.target, nodes.Name) and self._is_list(loop.iter):
                    self._messages.add(loop.target.name)
            for assign in tree.find_all(nodes.Assign):
                self._follow(assign)

    def passes(self, body: list[nodes.Node]) -> bool:
        """Whether statements write contents and do nothing else with them."""
        return all(self._passes(node) for node in body)

    def _follow(self, assign: nodes.Assign) -> None:
        if not isinstance(assign.target, nodes.Name):
            return
        if self._is_list(assign.node):
            self._lists.add(assign.target.name)
        elif self._is_message(assign.node):
            self._messages.add(assign.target.name)
        elif not self._is_safe(assign.node):
            self._contents.add(assign.target.name)

    def _passes(self, node: nodes.Node) -> bool:  # noqa: PLR0911 - one for each kind of statement
        match node:
            case nodes.Output():
                return all(self._is_written(part) for part in node.nodes)
            case nodes.If():
                skipped = self._needs_tools(node.test)
                rest = [*node.elif_, *node.else_]
                return self._may_ask(node.test) and (skipped or self.passes(node.body)) and self.passes(rest)
            case nodes.For():
                return self._passes_loop(node)
            case nodes.Assign(target=nodes.Name()):
                held = self._is_list(node.node) or self._is_message(node.node)
                return held or self._is_written(node.node)
            case nodes.Assign(target=nodes.NSRef()):
                return self._is_safe(node.node)
            case nodes.CallBlock(call=nodes.Call(node=nodes.ExtensionAttribute())):
                return self.passes(node.body)  # {% generation %}
            case nodes.Break() | nodes.Continue():
                return True
        return False

    def _passes_loop(self, loop: nodes.For) -> bool:
        if loop.recursive or not (loop.test is None or self._is_safe(loop.test)):
            return False
        named = isinstance(loop.target, nodes.Name) and self._is_list(loop.iter)
        return (named or self._is_safe(loop.iter)) and self.passes([*loop.body, *loop.else_])

    def _is_list(self, node: nodes.Node) -> bool:
        match node:
            case nodes.Name():
                return node.name in self._lists
            case nodes.Getitem(arg=nodes.Slice()):
                return self._is_list(node.node) and self._is_safe(node.arg)
        return False

    def _is_message(self, node: nodes.Node) -> bool:
        match node:
            case nodes.Name():
                return node.name in self._messages
            case nodes.Getitem() if not isinstance(node.arg, nodes.Slice):
                return self._is_list(node.node) and self._is_safe(node.arg)
        return False

    def _find_key(self, node: nodes.Node) -> str | None:
        """The key of a message that an expression reads; None when it is no such expression."""
        match node:
            case nodes.Getattr() if self._is_message(node.node):
                return str(node.attr)
            case nodes.Getitem(arg=nodes.Const(value=key)) if self._is_message(node.node):
                return str(key)
        return None

    def _is_content(self, node: nodes.Node) -> bool:
        return self._find_key(node) == "content" or (
            isinstance(node, nodes.Name) and node.name in self._contents
        )

    def _is_written(self, node: nodes.Node) -> bool:  # noqa: PLR0911 - one for each kind
        """Whether an expression joins contents to what does not depend on them."""
        match node:
            case _ if self._is_content(node) or self._is_safe(node):
                return True
            case nodes.Add():
                return self._is_written(node.left) and self._is_written(node.right)
            case nodes.Concat():
                return all(self._is_written(part) for part in node.nodes)
            case nodes.Filter(name="trim", args=[], kwargs=[]):
                return node.node is not None and self._is_written(node.node)
            case nodes.Call(node=nodes.Getattr(node=trimmed, attr=name), args=[], kwargs=[]):
                return name in _TRIMMING and self._is_written(trimmed)
            case nodes.CondExpr():
                either = node.expr2 is None or self._is_written(node.expr2)
                return self._may_ask(node.test) and self._is_written(node.expr1) and either
        return False

    def _may_ask(self, test: nodes.Node) -> bool:
        """Whether a condition asks no more of a content than its type and whether it is empty."""
        match test:
            case _ if self._is_content(test) or self._is_safe(test) or self._needs_tools(test):
                return True
            case nodes.And() | nodes.Or():
                return self._may_ask(test.left) and self._may_ask(test.right)
            case nodes.Not():
                return self._may_ask(test.node)
            case nodes.Test():
                return test.name in _TYPE_TESTS and self._is_content(test.node)
        return False

    def _needs_tools(self, test: nodes.Node) -> bool:
        """Whether a condition never holds in a chat without tools."""
        match test:
            case nodes.And():
                return self._needs_tools(test.left) or self._needs_tools(test.right)
            case nodes.Or():
                return self._needs_tools(test.left) and self._needs_tools(test.right)
            case nodes.Test(name="defined"):
                return self._find_key(test.node) == "tool_calls"
            case nodes.Compare(expr=nodes.Const(value="tool_calls"), ops=[nodes.Operand(op="in") as operand]):
                return self._is_message(operand.expr)
            case nodes.Compare(ops=[nodes.Operand(op="eq", expr=nodes.Const() as role)]):
                return self._find_key(test.expr) == "role" and role.value in TOOL_ROLES
        return self._find_key(test) == "tool_calls"

    def _is_safe(self, node: nodes.Node) -> bool:
        """Whether an expression cannot depend on contents."""
        key = self._find_key(node)
        if key is not None:
            return key != "content" and key not in _DICT
        match node:
            case nodes.Name():
                return node.name not in {"loop", *self._lists, *self._messages, *self._contents}
            case nodes.Getattr(node=nodes.Name(name="loop")):
                return node.attr in _LOOP
            case nodes.Filter(name="length", node=nodes.Node() as counted) if self._is_list(counted):
                return True
        return all(self._is_safe(child) for child in node.iter_child_nodes())
