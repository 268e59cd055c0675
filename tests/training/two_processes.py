"""What test_agreement.py starts with two processes, and calls in its own: `launch ... two_processes.py FOLDER`."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainingArguments

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import CheckpointError
from mypt.recipe import load_recipe
from mypt.training.build import build_trainer
from mypt.training.run import finish
from mypt.training.trainer import saving
from mypt.training.trainer.trainer import MyPTTrainer

KEPT = (15, 3, 0, 9)  # targets of each row; the others are ignored
POISONED = 22  # of samples 20 to 23: rank 1's with two processes


class Rows(torch.utils.data.IterableDataset):
    """Two steps of four rows in stock form (labels, not shifted), this process's share of them."""

    def __iter__(self):
        state = PartialState()
        share = slice(
            state.process_index * 4 // state.num_processes, (state.process_index + 1) * 4 // state.num_processes
        )
        for seed in range(2):
            ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(seed))
            labels = ids.clone()
            for row, kept in enumerate(KEPT):
                labels[row, 1 + kept :] = -100
            yield {"input_ids": ids[share], "labels": labels[share]}


class Gradients(TrainerCallback):
    def __init__(self):
        self.first = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.first = {
                name.removeprefix("module."): parameter.grad.clone() for name, parameter in model.named_parameters()
            }


def ignored_labels(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of two steps, and the gradient of the first."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MyPTForCausalLM(MyPTConfig(vocab_size=64, max_position_embeddings=16, **sizes))
    args = TrainingArguments(
        output_dir=folder, max_steps=2, logging_steps=1, save_strategy="no", learning_rate=0.1, max_grad_norm=0.0,
        use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, remove_unused_columns=False,
        per_device_train_batch_size=4 // PartialState().num_processes,
    )  # fmt: skip
    gradients = Gradients()
    trainer = MyPTTrainer(model=model, args=args, train_dataset=Rows(), callbacks=[gradients])
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], gradients.first


def poison(trainer) -> None:
    stream = type(trainer.train_dataset)(
        {source.name: source.weight for source in trainer.train_dataset.sources},
        block_size=trainer.train_dataset.block_size,
        seed=trainer.train_dataset.config.seed,
        start_sample=POISONED,
    )
    window = next(iter(stream))["input_ids"][0]

    def hook(module, inputs, output):
        bad = torch.tensor([torch.equal(row, window) for row in inputs[0]])
        return output.masked_fill(bad[:, None, None], float("nan"))

    trainer.model.get_input_embeddings().register_forward_hook(hook)


def fill_the_disk(trainer, where: str) -> str:
    """What this process raises when the main one finds no room: for the checksums, or for the states before them."""

    def refuse(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    write_checksums, save = saving.write_checksums, trainer.complete_save
    folder = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.global_step + 1}")
    if where == "checksums":
        saving.write_checksums = refuse
    try:
        with save:
            with save.model_of(folder):
                pass
            if where == "states" and trainer.is_world_process_zero():
                refuse(folder)
            save.finish(None)
    except CheckpointError as error:
        return str(error)
    finally:
        saving.write_checksums = write_checksums
        PartialState().wait_for_everyone()  # both take the folder away, before one of them saves there again


class Sender(TrainerCallback):
    """A signal to rank 1 alone."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    losses, gradients = ignored_labels(folder / "labels")
    if PartialState().is_main_process:
        (folder / "losses.json").write_text(json.dumps(losses))
        save_file(gradients, folder / "gradients.safetensors")
    trainer = build_trainer(load_recipe(folder / "resumed.yaml"), resume=True)
    trainer.train(resume_from_checkpoint=trainer.checkpoint)
    trainer = build_trainer(load_recipe(folder / "skipped.yaml"))
    poison(trainer)
    trainer.train()
    (folder / f"full_{trainer.args.process_index}.json").write_text(
        json.dumps([fill_the_disk(trainer, where) for where in ("checksums", "states")])
    )
    trainer = build_trainer(load_recipe(folder / "stopped.yaml"))
    trainer.add_callback(Sender())
    try:
        finish(trainer)
    except BaseException as error:
        code = getattr(error, "exit_code", None) or getattr(error, "code", None)
        (folder / f"exit_{trainer.args.process_index}.json").write_text(json.dumps([code, str(error)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
