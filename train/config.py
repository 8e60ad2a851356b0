"""Everything that a run of `python -m train` is told, as frozen dataclasses; a run saves the resolved values.

The docstrings of the fields are what `--help` says.
"""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .ranges import (
    Count,
    NotNegative,
    Number,
    Positive,
    Seed,
    Share,
    ShareBelowOne,
    Size,
    check_ranges,
)

TrainableName = Literal["full", "idefics", "frozen-backbones", "heads", "lora"]
RandomName = Literal["9b", "9b-instruct", "80b", "80b-instruct", "tiny"]
ScheduleName = Literal["constant", "linear", "cosine"]
KeptName = Literal["query", "key", "value", "attention", "out", "gate", "up", "dropout"]
LONGEST_ROW = 1024  # tokens of a row that are chosen by the records
RematName = Literal["none", "full", "dots"] | tuple[KeptName, ...]


@dataclass(frozen=True)
class MeshConfig:
    """How the devices of all hosts share the work: data x fsdp x tensor of them."""

    data: Size = 1
    """Copies of the weights; over several TPU slices a multiple of their number: only gradients cross between them."""
    fsdp: Size = -1
    """Pieces that weights and optimizer state are cut into, each gathered when it is used; -1: all devices left."""
    tensor: Size = 1
    """Devices that share the heads and MLP columns of every layer."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, with `--trainable lora` (Hu et al. 2021)."""

    rank: Count = 16
    alpha: Positive = 32.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: ShareBelowOne = 0.05
    """Share of an adapter's inputs that are zeroed in training."""
    targets: str = r"attention/[qkv]$"
    """Regular expression of the linear maps that get an adapter: q, k and v of every module by default. Paths are like
    model/decoder/groups/layers/attention/q, .../mlp/up, model/vision/layers/..., model/resampler/layers/..."""


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    train: tuple[str, ...] = ()
    """Sources: a folder of images with metadata.jsonl (or .csv, .parquet), a .jsonl, .csv or .parquet file, WebDataset
    .tar shards, .array_record files, or a directory that Hugging Face `datasets` saved. Globs are expanded;
    PATH=0.3 gives a source a weight in the mixture (default: its number of records)."""
    eval: tuple[str, ...] = ()
    """Held-out sources, of the same kinds."""
    template: str | None = None
    """Text of a record that has fields of its own instead of text or messages, such as "<image>This is {name}.": an
    image goes where <image> is. Default: its "text" after the image; or "question" and "answer" as a conversation."""
    sequence_length: Count | None = None
    """Tokens in a row; documents are packed into rows and never cut. Default: as many as the first records fill with
    their --data.max-images images, at most 1024."""
    max_images: Count = 8
    """Images in a row."""
    pack: bool = True
    """Several documents to a row."""
    segment_masks: bool = False
    """Documents in a row do not look at each other, and count their positions from 0 each (the authors did neither)."""
    loss_on: Literal["all", "answers"] = "all"
    """In conversations, learn every token (as the authors did) or the assistant's answers only."""
    loss_on_image_tokens: bool = True
    """Learn where images come (as the authors did)."""
    augment: bool = True
    """RandomResizedCrop of 0.9 to 1.0 of the image, bicubic; evaluation never crops."""
    remote_images: bool = False
    """Fetch images at http(s) addresses, from public hosts only; otherwise records with such images are bad."""
    high_depth: Literal["clip", "scale"] | None = None
    """16-bit and float images: clip (white or black, as in the authors' code) or scale to 8 bits; default: the
    checkpoint's processor (clip)."""
    workers: Number = 0
    """Processes that decode images, on each host; 0: in threads of this one."""
    max_bad: Share = 0.01
    """Stop when more than this share of the records read so far could not be used, more than 100 were read, and more
    than one record is bad. 0 allows none."""

    @property
    def tokens(self) -> int:
        """Tokens in a row, where the records have not been looked at."""
        return self.sequence_length or LONGEST_ROW


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights change."""

    name: str = "adamw"
    """adamw, adafactor, lion, sgd, or any other optimizer of optax by its name."""
    learning_rate: NotNegative = 1e-5
    final_learning_rate: NotNegative = 0.0
    """What a linear or cosine schedule ends at."""
    schedule: ScheduleName = "cosine"
    warmup_steps: Number = 0
    decay_steps: Count | None = None
    """Step at which the schedule reaches the final rate; default: the last one."""
    b1: ShareBelowOne = 0.9
    b2: ShareBelowOne = 0.999
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    """None on biases, alphas, norms and the whole resampler."""
    clip: Positive | None = 1.0
    """Largest global norm of the gradients."""
    first_moment: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class EvalConfig:
    """Looking at held-out data while training."""

    every: Count | None = None
    """Steps between evaluations; default: at the end only."""
    batches: Count = 16
    """Batches of held-out loss."""
    answers: Number = 200
    """Records that are answered greedily, for the exact match; the first 8 are shown beside their images."""
    max_new_tokens: Count = 20


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving, so that whatever happens the run goes on where it was."""

    every: Count = 500
    """Steps between checkpoints."""
    keep: Count = 2
    """Newest checkpoints to keep."""
    keep_best: Number = 0
    """And those with the lowest held-out loss."""


@dataclass(frozen=True)
class ProcessConfig:
    """Several hosts, each running the same command."""

    coordinator: str | None = None
    """HOST:PORT of process 0; or auto, where JAX finds out by itself: on TPU pods and under Slurm."""
    count: Count | None = None
    """How many there are (not with auto)."""
    index: Number | None = None
    """Which one this is, from 0 (not with auto)."""
    timeout: Count = 300
    """Seconds to wait for the others at the start."""
    patience: Positive = 1800.0
    """Seconds without a step after which all end, naming the one that is behind: evaluation, a checkpoint and whatever
    else comes between two steps has to take less."""


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tunes IDEFICS on a folder of images and text, on one device or on every host of a pod."""

    out: str
    """Directory of the run: checkpoints, logs and report. The same command again goes on where the run stopped."""
    model: str | None = None
    """Checkpoint to start from: a directory, URL or hub id; Hugging Face's files or Orbax."""
    random: RandomName | None = None
    """Start from random weights of this architecture instead; --model then gives tokenizer and image processor only."""
    recipe: str | None = None
    """Sets the defaults of everything else: idefics-base, idefics-instruct, lora or frozen-backbones."""
    pod: str | None = None
    """Sets mesh, batch and memory savings for this machine: v5e-16, v5e-256, v5p-64, v5p-128, v6e-256, 8xh100,
    8xh200 or 8xb200."""
    trainable: TrainableName = "idefics"
    """What trains. idefics: cross-attention, resampler and the additional tokens, plus the modules that the model's
    config excepts from freezing; frozen-backbones: the same, the whole embedding and the head; heads: head and
    additional tokens; lora: adapters."""
    steps: Count = 1000
    epochs: Positive | None = None
    """Passes over the training records, from which the number of steps is reckoned; instead of --steps."""
    batch_size: Count = 8
    """Rows in a step, over all devices."""
    accumulation: Count = 1
    """Parts that a step's rows are worked through in, one after the other, to save memory."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of computation. Weights that train are kept in float32."""
    frozen_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the weights that do not train."""
    remat: RematName = "full"
    """What the backward pass computes again instead of keeping: nothing (none), each layer (full), all but matrix
    products (dots), or all but what is named, of the decoder's layers: --remat key value."""
    loss_chunk: Count = 256
    """Tokens of a row whose logits exist at a time."""
    z_loss: NotNegative = 0.0
    """Weight of the mean squared log-partition function of the logits."""
    dropout: ShareBelowOne | None = None
    """Of the decoder; default: what the checkpoint's config says."""
    ema: ShareBelowOne | None = None
    """Decay of a moving average of the trained weights, which is then evaluated and exported."""
    max_skipped: Count = 20
    """Stop after this many steps in a row were skipped because a gradient was not finite."""
    seed: Seed = 13
    export: str | None = None
    """Directory to write the finished model to, as Hugging Face files that transformers loads."""
    log_every: Count = 1
    """Steps between lines of metrics."""
    profile: str | None = None
    """Steps to trace, such as 20:25, from 1; the trace, of process 0's devices, is in the run's profile/, for xprof."""
    plan: str | None = None
    """Do not train: compile the step for this pod, such as v5e:16x16, and say whether it fits, how long it takes and
    what of it takes longest. Needs libtpu (extra tpu), but no TPU."""
    slices: Count = 1
    """Slices of that shape, with --plan."""
    compiled: str | None = None
    """File or URL of the compiled step: with --plan it is written, without it the run loads it instead of compiling.
    Both need the same JAX and libtpu."""
    plan_search: bool = False
    """With --plan, try rows per chip, remat and meshes for the ones that use the pod best; each takes minutes."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def tokens_at_a_time(self, devices: int) -> int:
        """Of each of so many devices, in one part of a batch."""
        return self.batch_size * self.data.tokens // self.accumulation // devices

    def check(self) -> None:
        """Check all options, alone and together.

        Raises:
            ValueError: a value is out of its range, or two do not fit; the sentence names the option.
        """
        check_ranges(self)
        optimizer = self.optimizer
        if optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"--optimizer.warmup-steps {optimizer.warmup_steps} is more than all --steps {self.steps}; give fewer."
            )
        if optimizer.decay_steps is not None and optimizer.decay_steps <= optimizer.warmup_steps:
            raise ValueError(
                f"--optimizer.decay-steps {optimizer.decay_steps} is not above --optimizer.warmup-steps "
                f"{optimizer.warmup_steps}; the decay begins after the warm-up."
            )
        sizes = (self.mesh.data, self.mesh.fsdp, self.mesh.tensor)
        if sizes.count(-1) > 1:
            raise ValueError(
                f"--mesh.data, --mesh.fsdp and --mesh.tensor are {', '.join(map(str, sizes))}; only one of them can be "
                "-1, all devices left."
            )
        try:
            re.compile(self.lora.targets)
        except (re.error, RecursionError) as error:
            raise ValueError(
                f"--lora.targets {self.lora.targets!r} is not a regular expression ({error}); give one like "
                "attention/[qkv]$."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Nested, for JSON."""
        return asdict(self)
