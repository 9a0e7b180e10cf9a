"""The modules of tasks, each once, with all that any task says of them.

Owns what counts where tasks describe one module differently: the most memory, so that no budget is exceeded, and the
variants of all tasks, so that it doesn't matter which of them lists one. Knows nothing of devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker.protocol.specs import ModuleKey, ModuleName, ModuleSpec, TaskSpec, Variant


def distinct_modules(tasks: Sequence[TaskSpec]) -> dict[ModuleKey, tuple[ModuleName, ModuleSpec]]:
    """The modules that these tasks' nodes use, each once, in greedy order: flops, then memory, descending; then key."""
    found: dict[ModuleKey, tuple[ModuleName, ModuleSpec]] = {}
    for task in sorted(tasks, key=lambda task: task.task):
        for node in task.nodes.values():
            module = task.modules[node.module]
            known = found.get(module.key)
            if known is None or (module.memory_bytes, module.flops) > (known[1].memory_bytes, known[1].flops):
                found[module.key] = (node.module, module)
    variants = _variants_of(task.module_of(node) for task in tasks for node in task.nodes)
    for key, (name, module) in found.items() if variants else ():
        found[key] = (name, with_variants(module, variants.get(module.measured_key, ())))
    order = sorted(found, key=lambda key: (-found[key][1].flops, -found[key][1].memory_bytes, key))
    return {key: found[key] for key in order}


def with_variants(module: ModuleSpec, variants: Iterable[Variant]) -> ModuleSpec:
    """The module with these variants."""
    given = tuple(variants)
    return module if module.variants == given else module.model_copy(update={"variants": given})


def _variants_of(modules: Iterable[ModuleSpec]) -> dict[ModuleKey, tuple[Variant, ...]]:
    """The variants of each module that has any, one for an engine: of several the one that needs most memory."""
    found: dict[ModuleKey, dict[str, Variant]] = {}
    for module in modules:
        for variant in module.variants:
            known = found.setdefault(module.measured_key, {})
            known[variant.engine] = max(
                variant, known.get(variant.engine, variant), key=lambda each: (each.memory_bytes, each.key)
            )
    return {key: tuple(by_engine[engine] for engine in sorted(by_engine)) for key, by_engine in found.items()}
