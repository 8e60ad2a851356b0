"""A run from its configuration to the finished model: set up, the loop, evaluation, checkpoints, report."""

import json
from contextlib import closing

import jax
import jax.numpy as jnp

from idefics_jax import IdeficsForVisionText2Text
from idefics_jax.checkpoint import save_checkpoint
from idefics_jax.compilation_cache import keep_compiled_programs
from idefics_jax.compiler import training_options
from idefics_jax.data.records import check_data
from idefics_jax.lora import merge_adapters
from idefics_jax.sharding import on_mesh

from .batches import Step, make_layout, streams_after, training_batches
from .checkpoints import Checkpoints, Saved
from .config import TrainConfig
from .data.images import load_processor
from .data.report import BadRecords, PackingReport
from .evaluate import answers, eval_loss
from .kept import load as load_program
from .late import Late, peak_share
from .metrics import Metrics
from .optimizer import make_optimizer
from .place import Place
from .planning.compiling import lower
from .processes import StopRequest, join, leave, stop_requests
from .profile import Profile
from .report import FILES, REPORT, write_report
from .starting import check_fits, load, mesh_of, model_config
from .step import Objective, init_state, make_eval_step, make_train_step
from .watch import DONE, Watch


def run(config: TrainConfig) -> int:
    """Trains, from the run's newest checkpoint if it has one, and returns the exit status.

    Raises:
        FileNotFoundError, OSError: a checkpoint or a source of data cannot be read; or the run cannot be written.
        ValueError: options that do not fit each other, the model or the machine.
        RuntimeError: too many records or steps could not be used.
    """
    join(config.process)
    keep_compiled_programs()
    watch = Watch(config.process.patience)
    with watch:
        trainer = Trainer(config, watch)
    with stop_requests() as stop, closing(trainer), watch:
        status = trainer.train(stop)
        watch.at(DONE)
        if status == 0:
            trainer.finish()
    leave()
    watch.close()
    return status


class Trainer:
    """What a run holds while it goes on."""

    def __init__(self, config: TrainConfig, watch: Watch):
        self.watch = watch
        self.place = Place(config.out)
        self.directory = self.place.local
        self.first = jax.process_index() == 0
        self.profile = Profile(config.profile if self.first else None, self.directory)
        self.mesh = mesh_of(config)
        self.layout = make_layout(config, self.mesh)
        self.model_config = model_config(config)
        if not config.data.train:
            raise ValueError("Say what to train on: --data.train with a folder, a .jsonl file, or others (see --help).")
        check_data([*config.data.train, *config.data.eval], config.data.template)
        if config.model is None:
            raise ValueError("--model gives the tokenizer and image processor, with --random too.")
        self.processor = load_processor(config.model, config.data)
        self.config = config
        check_fits(config, self.model_config, self.mesh)
        self.template, params, self.frozen = load(config, self.model_config, self.mesh)
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        objective = Objective(self.template, config, self.processor.image_processor, self.processor.image_token_id)
        with on_mesh(self.mesh):
            state = jax.jit(lambda params: init_state(params, self.optimizer, config.ema is not None))(params)
            if config.compiled is None:
                self.train_step = jax.jit(
                    make_train_step(objective, self.optimizer),
                    donate_argnums=0,
                    compiler_options=training_options(config.tokens_at_a_time(jax.device_count())),
                )
            else:
                lowered, _ = lower(config, self.model_config, self.mesh, self.processor)
                self.train_step = load_program(
                    config.compiled, lowered, jax.devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)
                )
            self.eval_step = jax.jit(make_eval_step(objective))
        self.checkpoints = Checkpoints(self.place.path, config.checkpoint)
        saved = self.checkpoints.restore(state)
        self.state, self.streams = (state, None) if saved is None else saved
        self.step = int(self.state.step)
        self.bad = BadRecords(self.directory, config.data.max_bad, jax.process_index())
        self.place.fetch(self.bad.path.name, *(FILES[:2] if self.first else ()))
        self.place.start()
        watch.last_words = self.place.copy
        if self.first:
            (self.directory / "run.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        self.metrics = Metrics(self.directory, config.steps, self.step, visible=True, enabled=self.first)
        self.packing = PackingReport()
        self.eval_loss: float | None = None

    def close(self) -> None:
        """Waits for what is still being written."""
        try:
            self.checkpoints.close()
        finally:
            self.place.close()

    def train(self, stop: StopRequest) -> int:
        """All steps that are left; the exit status, 0 if none is."""
        config = self.config
        if self.step >= config.steps:
            return 0
        batches = training_batches(config, self.processor, self.layout, self.streams)
        with on_mesh(self.mesh), self.metrics, closing(batches), closing(self.profile):
            step = next(batches)
            late = self._late()
            while True:
                self.watch.at(self.step + 1)
                with self.profile.step(self.step + 1):
                    self.state, values = self.train_step(self.state, self.frozen, step.batch)
                self.step += 1
                self.profile.after(self.step, values)
                self._note(step)
                late.log(self.step, values, step)
                done, status = self.step == config.steps, stop.at(self.step)
                if not (done or status):
                    with late.loading():
                        upcoming = next(batches)
                if done or (config.eval.every and self.step % config.eval.every == 0):
                    with late.away():
                        self._evaluate()
                if done or status or self.step % config.checkpoint.every == 0:
                    with late.away():
                        self._save(step, wait=bool(done or status))
                if status:
                    self.metrics.note(f"Asked to stop: saved at step {self.step}; the same command goes on from there.")
                if done or status:
                    return status
                step = upcoming

    def _late(self) -> Late:
        share = peak_share(self.config, self.model_config, self.template.paths)
        return Late(self.metrics, self.config, int(self.state.skipped), share)

    def finish(self) -> None:
        """After the last step: the finished model and the report."""
        if self.config.export is not None:
            self._export(self.config.export)
        if self.first:
            (self.directory / "summary.json").write_text(json.dumps({"packing": str(self.packing)}) + "\n")
            write_report(self.directory)
            print(self.place.path / REPORT)

    def model(self) -> IdeficsForVisionText2Text:
        """The model as it is now; of a run with a moving average, that."""
        return self.template.join(self.state.params if self.state.ema is None else self.state.ema, self.frozen)

    def _note(self, step: Step) -> None:
        for row in step.rows.values():
            self.packing.add(row)
            self.bad.add(row)

    def _save(self, step: Step, wait: bool) -> None:
        saved = Saved(self.state, streams_after(step, self.layout))
        self.place.copy_soon()
        self.checkpoints.save(self.step, saved, self.eval_loss, wait)
        self.eval_loss = None

    def _evaluate(self) -> None:
        config = self.config
        if not config.data.eval:
            return
        params = self.state.params if self.state.ema is None else self.state.ema
        self.eval_loss = eval_loss(
            config, self.processor, self.layout, lambda batch: self.eval_step(params, self.frozen, batch)
        )
        values = {"eval_loss": self.eval_loss}
        if config.eval.answers:
            predictions = answers(config, self.processor, self.model())
            if right := [prediction.right for prediction in predictions if prediction.right is not None]:
                values["eval_exact_match"] = sum(right) / len(right)
            self.metrics.predictions(self.step, predictions)
        self.metrics.evaluation(self.step, values)

    def _export(self, directory: str) -> None:
        """Writes the finished model as Hugging Face files, in the dtype of computation."""
        model = self.model()
        if self.config.trainable == "lora":
            model = merge_adapters(model)
        with on_mesh(self.mesh):
            dtype = jnp.dtype(self.config.dtype)
            model = jax.jit(lambda model: jax.tree.map(lambda x: x.astype(dtype), model))(model)
        save_checkpoint(directory, model, self.processor)
