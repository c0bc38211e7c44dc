"""The demo's plain text, for masked language modelling: what the modules say, and some of what they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from longspan.demo.installed import order
from longspan.demo.pairs import Pair, is_documented
from longspan.demo.python_docs import Module


def choose(
    modules: Sequence[Module], whole_texts: Sequence[Pair], *, num_bytes: int, share: float, seed: int
) -> list[tuple[str, str]]:
    """Choose titles and texts: 7/10 documentation of modules and READMEs, the rest source code; every text is whole.

    Args:
        modules: modules that are not held out.
        whole_texts: READMEs and documents; only the document of a pair is used.
        num_bytes: UTF-8 bytes of all texts, at most.
        share: the largest part that one package may give.
        seed: another seed, another choice and order.
    """
    documentation = [(module.package, module.name, _documentation(module)) for module in modules]
    documentation += [(pair.package, pair.id, pair.document) for pair in whole_texts]
    sources = [(item.package, f"{item.name} (source)", item.source) for item in modules if is_documented(item)]
    chosen = _within(documentation, num_bytes=num_bytes * 7 // 10, share=share, seed=seed)
    left = num_bytes - sum(len(text.encode()) for _, text in chosen)
    return chosen + _within(sources, num_bytes=left, share=share, seed=seed)


def _within(texts: Iterable[tuple[str, str, str]], *, num_bytes: int, share: float, seed: int) -> list[tuple[str, str]]:
    chosen: list[tuple[str, str]] = []
    seen: set[str] = set()
    of_package: Counter[str] = Counter()
    for package, title, text in sorted(texts, key=lambda entry: order(seed, "text", entry[1])):
        size = len(text.encode())
        too_much = of_package[package] + size > share * num_bytes or of_package.total() + size > num_bytes
        if len(text.split()) < 20 or text in seen or too_much:
            continue
        seen.add(text)
        of_package[package] += size
        chosen.append((title, text))
    return chosen


def _documentation(module: Module) -> str:
    parts = [module.summary, module.body]
    for item in module.objects:
        name = item.id.removeprefix(f"{module.name}.")
        parts += [f"{name}({', '.join(item.parameters)})", item.summary, item.body]
    return "\n\n".join(part for part in parts if part)
