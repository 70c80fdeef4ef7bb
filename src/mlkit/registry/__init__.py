"""From a name or a config to a live object: registries of factories and strategies, and specs that they build.

```python
models = Registry("models", Model)

@models.register("mlp", version=1)
class MLP(Model):
    def __init__(self, hidden: int = 64) -> None: ...

net = models.build(Spec.load("train.yaml", at="model"))
spec_of(net).digest
```
"""

from __future__ import annotations

from mlkit.registry._choice import Choice
from mlkit.registry._entry import Entry
from mlkit.registry._problem import Problem
from mlkit.registry._provenance import spec_of
from mlkit.registry._registry import Registry
from mlkit.registry._spec import Spec

__all__ = ["Choice", "Entry", "Problem", "Registry", "Spec", "spec_of"]
