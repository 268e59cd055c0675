"""A whole run: build, train what is left, publish the final and the best model."""

import time
from pathlib import Path

from mypt.checkpoints.complete import read_state
from mypt.recipe import Recipe
from mypt.training import run_folder
from mypt.training.build import build_trainer


def train(recipe: Recipe, *, resume: bool = False, assume_yes: bool = False) -> Path:
    """Build, train (or find that nothing is left to train) and publish the final and the best model.

    Returns the run folder. Raises MyPTError subclasses.
    """
    trainer = build_trainer(recipe, resume=resume, assume_yes=assume_yes)
    run = Path(trainer.args.output_dir)
    done = read_state(Path(trainer.checkpoint)) if trainer.checkpoint else {"global_step": 0}
    if done["global_step"] >= trainer.args.max_steps:
        if trainer.is_world_process_zero():
            print(f"already complete: step {done['global_step']} of {trainer.args.max_steps}")
            run_folder.publish(run, done["best_model_checkpoint"])
        return run
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=trainer.checkpoint)
    if trainer.is_world_process_zero():
        run_folder.publish(run, trainer.state.best_model_checkpoint)
        print(
            f"trained to step {trainer.state.global_step} in {time.monotonic() - started:.0f} s; the model is in {run}"
        )
        if trainer.forgetting:
            print(trainer.forgetting.report()["verdict"])
    # A process that leaves while another still writes would take the whole launch down.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return run
