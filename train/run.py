"""A run from its configuration to the finished model: set up, the loop, evaluation, checkpoints, report."""

import json
import sys
import time
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import jax
import jax.numpy as jnp

from idefics_jax import IdeficsForVisionText2Text
from idefics_jax.checkpoints.pretrained import save_checkpoint
from idefics_jax.data.records import check_columns, check_data, open_sources
from idefics_jax.data.sources import Source
from idefics_jax.nn.lora import merge_adapters
from idefics_jax.parallel.hardware import training_options
from idefics_jax.parallel.mesh import on_mesh
from idefics_jax.utils.compilation_cache import keep_compiled_programs
from idefics_jax.utils.lock import locked
from idefics_jax.utils.paths import as_path, write_whole

from .batches import Step, make_layout, streams_after, training_batches
from .checkpoints import Checkpoints, Saved
from .config import TrainConfig
from .data.images import load_processor
from .data.report import BadRecords, PackingReport
from .evaluate import answers, eval_loss, samples
from .history import check_same, marks, read_starts, write_starts
from .kept import load as load_program
from .late import LaggedMetrics, peak_share
from .metrics import COUNTS, Metrics
from .optimizer import make_optimizer
from .place import RunDirectory, check_place
from .planning.compiling import lower
from .processes import StopRequest, agreed, join, leave, stop_requests
from .profile import Profile
from .report import FILES, REPORT, write_report
from .rows import fitted, look, records_per_row
from .starting import check_fits, check_step_fits, load, mesh_of, model_config
from .step import Objective, all_finite, init_state, make_eval_step, make_train_step
from .watch import DONE, Watchdog

SUMMARY = "summary.json"


def run(config: TrainConfig) -> int:
    """Trains, from the run's newest checkpoint if it has one, and returns the exit status.

    Raises:
        FileNotFoundError, OSError: a checkpoint or a source of data cannot be read; or the run cannot be written.
        ValueError: options that do not fit each other, the model, the machine, or what the run began with.
        RuntimeError: too many records or steps could not be used; or another run is in the directory.
    """
    config.check()
    sources = check_inputs(config)
    join(config.process)
    keep_compiled_programs()
    watch, place = Watchdog(config.process.patience), RunDirectory(config.out)
    with ExitStack() as held:
        with watch:
            if jax.process_index() == 0:
                held.enter_context(locked(place.path, "train"))
            trainer = Trainer(config, sources, place, watch)
        with stop_requests() as stop, closing(trainer), watch:
            status = trainer.train(stop)
            watch.at(DONE)
            if status == 0:
                trainer.finish()
    leave()
    watch.close()
    return status


def check_inputs(config: TrainConfig) -> list[Source]:
    """Open what is trained on, and check what takes no time to check, before minutes are spent on loading a model.

    Raises:
        OSError: there are no such data, or an output cannot be written where it is to be.
        ValueError: there is no model or no data, or an output would mix with other files.
    """
    if not config.data.train:
        raise ValueError("Say what to train on: --data.train with a folder, a .jsonl file, or others (see --help).")
    if config.model is None:
        raise ValueError("--model gives the tokenizer and image processor, with --random too.")
    sources = open_sources(config.data.train)
    check_columns(sources, config.data.template)
    check_data(config.data.eval, config.data.template)
    check_place("--out", config.out)
    if config.export is not None:
        check_place("--export", config.export, checkpoint=True)
    return sources


class Trainer:
    """What a run holds while it goes on."""

    def __init__(self, config: TrainConfig, sources: list[Source], place: RunDirectory, watch: Watchdog):
        self.began = time.monotonic()
        self.watch, self.place = watch, place
        self.directory = place.local
        self.first = jax.process_index() == 0
        self.profile = Profile(config.profile if self.first else None, self.directory)
        self.mesh = mesh_of(config)
        self.layout = make_layout(config, self.mesh)
        self.model_config = model_config(config)
        assert config.model is not None
        self.processor = load_processor(config.model, config.data)
        self.sources = sources
        looked = look(sources, self.processor, config.data)
        self.config = config = fitted(config, looked)
        config.check()  # the warm-up, now that the number of steps is known
        self.per_row = records_per_row(looked, config.data)
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        self.marks = marks(self.sources, self.model_config, self.processor)
        self.checkpoints = Checkpoints(place.path, config.checkpoint)
        self.starts = read_starts(place.path)
        self.changes: str | None = None
        if self.first and self.checkpoints.latest():
            self.changes = check_same(place.path, self.starts, config, self.marks)
        self.finished = agreed(self.first and self._is_finished())
        if not self.finished:
            self._load()

    def _is_finished(self) -> bool:
        """Return True if an earlier start did all that is asked for."""
        if self.checkpoints.latest() < self.config.steps:
            return False
        try:
            summary = json.loads((self.place.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        export = self.config.export
        if export is None:
            return "steps" in summary
        return summary.get("export") == export and (as_path(export) / "config.json").exists()

    def _load(self) -> None:
        """Load the model and the state that the run goes on from, and prepare the step."""
        config = self.config
        check_fits(config, self.model_config, self.mesh)
        self.template, params, self.frozen = load(config, self.model_config, self.mesh)
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
        self.all_finite = jax.jit(all_finite)
        saved = self.checkpoints.restore(state)
        self.packing, self.seconds_before = PackingReport(), 0.0
        self.state, self.streams = state, None
        if saved is not None:
            self.state, self.streams, totals = saved
            self.seconds_before = totals.get("seconds", 0.0)
            vars(self.packing).update(totals.get("packing", {}))
        self.step = int(self.state.step)
        self.bad = BadRecords(self.directory, config.data.max_bad, jax.process_index())
        self.place.fetch(self.bad.path.name, *(FILES[:2] if self.first else ()))
        self.place.start()
        self.watch.last_words = self.place.copy
        self.metrics = Metrics(self.directory, config.steps, self.step, visible=True, enabled=self.first)
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
        if self.finished or self.step >= config.steps:
            return 0
        self._announce()
        batches = training_batches(config, self.processor, self.layout, self.streams, self.sources)
        with on_mesh(self.mesh), self.metrics, closing(batches), closing(self.profile):
            step = next(batches)
            self._check_memory(step)
            if self.first:
                write_starts(self.directory, self.starts, config, self.step, self.marks)
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
                        # On the way, weights that may have diverged push no older ones out.
                        if done or status or not late.skipping:
                            self._save(step, wait=bool(done or status))
                if status:
                    self.metrics.note(f"Asked to stop: saved at step {self.step}; the same command goes on from there.")
                if done or status:
                    return status
                step = upcoming

    def _check_memory(self, step: Step) -> None:
        """On CPUs compile the step and refuse what does not fit; elsewhere XLA does, at the first call."""
        if jax.default_backend() == "cpu" and not isinstance(self.train_step, jax.stages.Compiled):
            self.train_step = self.train_step.lower(self.state, self.frozen, step.batch).compile()
            check_step_fits(self.config, self.train_step, self.mesh)

    def _announce(self) -> None:
        """Say before the first step what trains, on what, and from where."""
        if not self.first:
            return
        config, data, per_step = self.config, self.config.data, self.config.batch_size * self.per_row
        records, rows = self.marks.records, f"{config.batch_size:,} rows of {data.tokens:,} tokens"
        mesh = "" if self.mesh is None else f", mesh {', '.join(f'{k} {v}' for k, v in self.mesh.shape.items())}"
        trained, parameters = self._sizes()
        self.metrics.note(f"Devices: {_devices()}{mesh}.")
        self.metrics.note(
            f"Model: {config.random or config.model}; {config.trainable} trains {trained:,} of {parameters:,} weights."
        )
        self.metrics.note(
            f"Data: {records:,} records in {len(self.sources):,} source{'s' * (len(self.sources) > 1)}; a step has "
            f"{rows}, about {per_step:,.3g} records; {config.steps:,} steps are about "
            f"{config.steps * per_step / records:.3g} epochs."
        )
        if self.step:
            changes = "" if self.changes is None else f", with {self.changes}"
            self.metrics.note(f"Going on from step {self.step:,} of {self.place.path}{changes}.")

    def _sizes(self) -> tuple[int, int]:
        """Return how many weights train, and how many there are."""
        trained, frozen = (
            sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (self.state.params, self.frozen)
        )
        return trained, trained + frozen

    def _totals(self) -> dict[str, Any]:
        """Return what is added up over all starts of the run."""
        return {"packing": vars(self.packing), "seconds": self.seconds_before + time.monotonic() - self.began}

    def _late(self) -> LaggedMetrics:
        share = peak_share(self.config, self.model_config, self.template.paths)
        return LaggedMetrics(self.metrics, self.config, int(self.state.skipped), share)

    def finish(self) -> None:
        """After the last step: the finished model and the report."""
        if self.finished:
            if self.first:
                print(
                    f"{self.place.path} is finished: its {self.checkpoints.latest():,} steps are done, and nothing was "
                    "changed; more --steps go on from there, another --out begins anew.",
                    file=sys.stderr,
                )
                print(self.place.path / REPORT)
            return
        config = self.config
        if config.export is not None:
            self._export(config.export)
        if self.first:
            trained, parameters = self._sizes()
            summary = {
                "steps": self.step,
                "wall time": str(timedelta(seconds=round(self._totals()["seconds"]))),
                "devices": _devices(),
                "trained weights": f"{trained:,} of {parameters:,}",
                "records": self.marks.records,
                "packing": str(self.packing),
                "export": config.export,
            }
            write_whole(self.directory / SUMMARY, json.dumps(summary) + "\n")
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
        self._check_finite((self.state.params, self.state.ema), f"after step {self.step:,}")
        saved = Saved(self.state, streams_after(step, self.layout), self._totals())
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
        values: dict[str, float] = {"eval_loss": self.eval_loss}
        if config.eval.answers:
            predictions = answers(config, self.processor, self.model())
            if right := [prediction.right for prediction in predictions if prediction.right is not None]:
                values |= {"eval_exact_match": sum(right) / len(right)}
                values |= dict(zip(COUNTS, (sum(right), len(right)), strict=True))
            self.metrics.predictions(self.step, samples(predictions, self.processor))
        self.metrics.evaluation(self.step, values)

    def _export(self, directory: str) -> None:
        """Writes the finished model as Hugging Face files, in the dtype of computation."""
        model = self.model()
        if self.config.trainable == "lora":
            model = merge_adapters(model)
        with on_mesh(self.mesh):
            dtype = jnp.dtype(self.config.dtype)
            model = jax.jit(lambda model: jax.tree.map(lambda x: x.astype(dtype), model))(model)
        self._check_finite(model, "of the finished model")
        save_checkpoint(directory, model, self.processor)

    def _check_finite(self, tree: Any, which: str) -> None:
        with on_mesh(self.mesh):
            finite = bool(self.all_finite(tree))
        if not finite:
            raise RuntimeError(
                f"The weights {which} are not finite (NaN or infinity), so they are neither saved nor exported; a "
                "lower --optimizer.learning-rate or --dtype float32 may mend it, and the last checkpoint is as it was."
            )


def _devices() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
