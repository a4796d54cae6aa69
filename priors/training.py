"""What the recipes share: averaged weights, precision, learning rate, checkpoints, curves."""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


def mixed_precision() -> AbstractContextManager:
    """bf16 products where the processor has them (AMX, AVX-512 BF16); elsewhere they are emulated, 40 times slower."""
    cpu = torch.cpu
    fast = cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16) if fast else nullcontext()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    u = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * u)))


class Run:
    """One training run: its modules, optimizer, average, step count, and where they rest on disk."""

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        *,
        lr: float,
        steps: int,
        decay: float = 0.999,
        scaler: torch.amp.GradScaler | None = None,
        slow: nn.Module | None = None,
    ) -> None:
        """`scaler` keeps the gradients of fp16 products from vanishing; other precisions need none. `slow` is a part of
        `module` that takes steps of a tenth: one that begins well trained."""
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.module, self.folder, self.lr, self.steps = module, folder, lr, steps
        careful = [] if slow is None else list(slow.parameters())
        rest = [p for p in module.parameters() if not any(p is q for q in careful)]
        self._paces = (1.0, 0.1)[: 1 + bool(careful)]
        groups = [{"params": part} for part in (rest, careful) if part]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=1e-2)
        self._average = EMAModel(module.parameters(), decay)
        self.step, self.started = 0, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            own = [state["average"][name].to(p.device) for name, p in module.named_parameters()]
            self._average.load_state_dict({"shadow_params": own, "optimization_step": state["step"]})
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            self.step = state["step"]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def update(self, loss: Tensor) -> None:
        """One optimizer step on `loss`, gradients clipped at norm 1; a non-finite gradient is skipped."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        for group, pace in zip(self.optimizer.param_groups, self._paces, strict=True):
            group["lr"] = pace * learning_rate(self.step, self.steps, self.lr)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        if torch.isfinite(norm):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average.step(self.module.parameters())
        self.step += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the module computes with the averages of its parameters."""
        self._average.store(self.module.parameters())
        self._average.copy_to(self.module.parameters())
        try:
            yield
        finally:
            self._average.restore(self.module.parameters())

    def save(self) -> None:
        names = [name for name, _ in self.module.named_parameters()]
        average = dict(zip(names, self._average.shadow_params, strict=True))
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": average, "step": self.step, "scaler": self.scaler.state_dict()}
        aside = self.checkpoint.with_suffix(".partial")
        torch.save(state, aside)
        os.replace(aside, self.checkpoint)

    def log(self, **values: float) -> None:
        """Appends a row to the run's curve and prints it."""
        row = {"step": self.step, "seconds": round(time.monotonic() - self.started, 1)}
        row |= {key: round(float(torch.as_tensor(value).detach()), 5) for key, value in values.items()}
        path = self.folder / "curve.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


def recipe_arguments(description: str, *, steps: int, lr: float, batch: int) -> argparse.ArgumentParser:
    """The options that every recipe has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", type=Path, required=True, help="checkpoints and curve; an existing run continues")
    parser.add_argument("--steps", type=int, default=steps, help="length of the learning-rate schedule")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    return parser
