"""Under torchrun: train the tiny model on every rank, resume once, into FOLDER."""

import sys
from pathlib import Path

import torch
from train_and_die import FirstStep, trainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    trainer(folder, ddp_backend="gloo").train()
    first = FirstStep()
    trainer(folder, callbacks=[first], ddp_backend="gloo").train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    assert first.seen == 6
