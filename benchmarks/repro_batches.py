"""What it costs that a row's bits do not depend on its batch, for small models of each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.repro import batch_invariance, isolated

if TYPE_CHECKING:
    from benchmarks.harness import Bench


def batches(bench: Bench, torch: Any) -> None:
    """Serve 8 and 64 rows as they come, all padded to the largest stable shape, and one by one."""
    with isolated(7), torch.no_grad():
        for name, (model, rows) in _models(torch).items():
            model.eval()
            report = batch_invariance(model, rows)
            bench.note(f"batch_invariance, {name}: {report}.")
            if report.costs:
                _serve(bench, torch, name, model, rows, fixed=max(report.costs))


def _models(torch: Any) -> dict[str, tuple[Any, Any]]:
    nn = torch.nn

    class Gru(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(32, 64, batch_first=True), nn.Linear(64, 5)

        def forward(self, x: Any) -> Any:
            return self.head(self.cell(x)[0][:, -1])

    class Encoder(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Any) -> Any:
            return self.encoder(x).mean(1)

    mlp = nn.Sequential(nn.Linear(30, 50), nn.Sigmoid(), nn.Linear(50, 1), nn.Sigmoid())
    conv = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 900, 10))
    return {
        "linear 768 to 3072": (nn.Linear(768, 3072), torch.randn(64, 768)),
        "mlp with a sigmoid head": (mlp, torch.randn(64, 30)),
        "conv 3x32x32": (conv, torch.randn(64, 3, 32, 32)),
        "gru 12x32": (Gru(), torch.randn(64, 12, 32)),
        "encoder of 3 tokens": (Encoder(), torch.randn(64, 3, 128)),
    }


def _serve(bench: Bench, torch: Any, name: str, model: Any, rows: Any, *, fixed: int) -> None:
    count = len(rows)
    for size in (8, count):
        batch = rows[:size]
        padding = rows[:1].expand(-size % fixed, *rows.shape[1:])

        def padded(batch: Any = batch, padding: Any = padding) -> Any:
            whole = torch.cat([batch, padding])
            return torch.cat([model(part) for part in whole.split(fixed)])[: len(batch)]

        contenders = {
            "as they come": lambda batch=batch: model(batch),
            f"padded to {fixed}": padded,
            "one by one": lambda batch=batch: torch.cat([model(row[None]) for row in batch]),
        }
        bench.compare(
            f"{name}: {size} rows",
            contenders,
            baseline="as they come",
            equal=lambda one, other: torch.allclose(one, other, atol=1e-4),
        )
