"""A small real training run that is killed and gone on with; run by `test_resume.py` in processes of its own.

The program imports torch once and forks a process for each part of a run, whose generators it first puts anywhere, as
those of a new process would be.
"""

# ruff: noqa: NPY002 - draws from the global generators are what must be resumed
from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mlkit.demo.digits import load_digits
from mlkit.repro import Keyed, KeyedSampler, RngState, Seeds, rng_state, seed_all

SEEDS = Seeds(42)
ROWS, BATCH, EPOCHS, SAVE_EVERY = 128, 32, 3, 3
STEPS = ROWS // BATCH * EPOCHS


DIGITS = []


class Digits:
    """Real digits; augmented with draws from all libraries and from a generator that it holds."""

    def __init__(self, augment):
        digits = DIGITS[0]
        self.x, self.y = digits.train_x[:ROWS], digits.train_y[:ROWS]
        self.augment, self.rng = augment, np.random.default_rng(0)

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        x = torch.from_numpy(self.x[index]).float()
        if self.augment:
            x = torch.roll(x, random.randrange(-2, 3)) + 0.1 * torch.randn(x.shape)
            x = x * np.float32(np.random.uniform(0.8, 1.2)) + np.float32(self.rng.normal()) * 0.01
        return index, x, int(self.y[index])


class Training:
    """What a run is made of, and how its state is written and read."""

    def __init__(self, folder, workers, augment, method):
        seed_all(SEEDS / "globals")
        self.net = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.file, self.log = folder / "state.pt", folder / "log.txt"
        self.keyed, self.step = method != "naive", 0
        data = Digits(augment)
        options = {"batch_size": BATCH, "num_workers": workers}
        if self.keyed:
            data = Keyed(data, SEEDS / "data")
            self.sampler = KeyedSampler(data, SEEDS / "order")
            options["sampler"] = self.sampler
            if method != "no generator":
                options["generator"] = torch.Generator()  # else each pass draws from the global one
        else:
            options["shuffle"] = True
        self.loader = torch.utils.data.DataLoader(data, **options)

    def save(self, *, killed_inside):
        state = {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng_state().to_dict(),
            "step": self.step,
        }
        if self.keyed:
            state["sampler"] = self.sampler.state_dict()
        scratch = self.file.with_suffix(".new")
        torch.save(state, scratch)
        if killed_inside:
            os.kill(os.getpid(), signal.SIGKILL)
        scratch.replace(self.file)

    def load(self):
        state = torch.load(self.file, weights_only=True)
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if self.keyed:
            self.sampler.load_state_dict(state["sampler"])
        RngState.from_dict(state["rng"]).restore()

    def run(self, kill_at, place):
        if self.file.exists():
            self.load()
        skip = 0 if self.keyed else self.step % (ROWS // BATCH)
        while self.step < STEPS:
            for indices, x, y in self.loader:
                if skip:  # what one does without a sampler that can begin anywhere
                    skip -= 1
                    continue
                self.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.net(x), y)
                loss.backward()
                killed = self.step + 1 == kill_at
                if killed and place == "before the step":
                    os.kill(os.getpid(), signal.SIGKILL)
                self.optimizer.step()
                self.step += 1
                if self.keyed:
                    self.sampler.advance(len(indices))
                seen = hashlib.sha256(indices.numpy().tobytes() + x.numpy().tobytes()).hexdigest()
                with self.log.open("a") as log:
                    log.write(f"{self.step} {seen} {loss.item().hex()}\n")
                if killed or self.step % SAVE_EVERY == 0:
                    self.save(killed_inside=killed and place == "inside the save")
                if killed:
                    os.kill(os.getpid(), signal.SIGKILL)
        weights = b"".join(value.numpy().tobytes() for value in self.net.state_dict().values())
        (self.file.parent / "weights").write_text(hashlib.sha256(weights).hexdigest())


def part(job):
    """Run one part of a run in a process of its own; return the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        random.seed(os.urandom(8))
        np.random.seed(int.from_bytes(os.urandom(4), "little"))
        torch.seed()
        try:
            training = Training(Path(job["folder"]), job["workers"], job["augment"], job["method"])
            training.run(job["kill_at"], job["place"])
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    try:
        os.killpg(child, signal.SIGKILL)  # the data workers of a killed process
    except ProcessLookupError:
        pass
    return os.waitstatus_to_exitcode(status)


def main():
    torch.set_num_threads(1)
    DIGITS.append(load_digits(SEEDS / "digits"))
    weight = nn.Parameter(torch.zeros(1))
    weight.square().backward()
    torch.optim.AdamW([weight]).step()  # imports a second's worth of torch, once for all parts
    for job in json.loads(Path(sys.argv[1]).read_text()):
        Path(job["folder"]).mkdir(exist_ok=True)
        expected = -signal.SIGKILL if job["kill_at"] else 0
        ended = part(job)
        if ended != expected:
            sys.exit(f"{job} ended with {ended}")


if __name__ == "__main__":
    main()
