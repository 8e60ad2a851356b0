"""Options of training that are refused before anything is loaded."""

from tests.bad_inputs.case import Case, Folder

TRAIN = ("train", "--model", "{checkpoint}", "--data.train", "{d}/data", "--out", "{d}/run")
NAN_OR_MORE = ("nan", "inf", "-1")


def data(folder: Folder) -> None:
    folder.image("data/1.png")
    folder.lines("data/metadata.jsonl", {"file_name": "1.png", "question": "What?", "answer": "gray"})


def foreign(folder: Folder) -> None:
    data(folder)
    folder.write("export/letter.txt", "Dear all,")
    folder.write("file", "no directory")


def configs(folder: Folder) -> None:
    folder.write("list.json", [1])
    folder.write("broken.json", "{")
    folder.write("unknown.json", {"step": 3})
    folder.write("range.json", {"steps": -3})
    folder.write("kind.json", {"optimizer": {"learning_rate": "fast"}})


def refused(option: str, value: str, says: str | None = None) -> Case:
    words = says or rf"--{option} \S+ is out of range; give a number"
    return Case(f"{option} {value}", (*TRAIN, f"--{option}", value), words)


CASES = [
    *[refused("steps", value) for value in ("0", "-1", str(10**30))],
    refused("steps", "many", "--steps"),
    refused("steps", "1.5", "--steps"),
    refused("batch-size", "0"),
    refused("accumulation", "0"),
    refused("checkpoint.every", "0"),
    refused("checkpoint.keep", "0"),
    refused("eval.every", "0"),
    refused("log-every", "0"),
    refused("loss-chunk", "0"),
    refused("lora.rank", "0"),
    refused("lora.alpha", "nan"),
    refused("lora.targets", "(", "not a regular expression"),
    refused("seed", str(10**30)),
    refused("seed", "-1"),
    *[refused("optimizer.learning-rate", value) for value in NAN_OR_MORE],
    *[refused("epochs", value) for value in (*NAN_OR_MORE, "0")],
    refused("dropout", "2"),
    refused("lora.dropout", "1"),
    refused("ema", "2"),
    refused("optimizer.b1", "1"),
    refused("optimizer.b2", "-0.1"),
    refused("optimizer.eps", "-1e-8"),
    refused("optimizer.weight-decay", "-0.1"),
    refused("optimizer.clip", "0"),
    refused("optimizer.warmup-steps", "2000", "more than all --steps 1000"),
    refused("optimizer.decay-steps", "0"),
    refused("mesh.data", "0"),
    refused("mesh.tensor", "-2"),
    refused("mesh.data", "-1", "only one of them can be -1"),
    refused("data.sequence-length", "0"),
    refused("data.max-bad", "2"),
    refused("process.patience", "-5"),
    refused("random", "foo", "invalid choice 'foo'"),
    refused("dtype", "float16", "invalid choice 'float16'"),
    refused("remat", "everything", "invalid choice 'everything'"),
    refused("stepz", "3", "Unrecognized options: --stepz"),
    Case("steps and epochs", (*TRAIN, "--steps", "3", "--epochs", "1"), "--epochs and --steps both"),
    Case("no directory", ("train", "--model", "{checkpoint}", "--data.train", "{d}"), "--out"),
    Case("no data", ("train", "--model", "{checkpoint}", "--out", "{d}/run"), "--data.train"),
    Case("no model", ("train", "--data.train", "{d}/data", "--out", "{d}/run"), "--model gives", data),
    Case(
        "an unknown optimizer",
        (*TRAIN, "--optimizer.name", "adamx", "--mesh.fsdp", "1", "--mesh.data", "8"),
        "no optimizer 'adamx'",
        data,
    ),
    Case("a file where the run goes", (*TRAIN, "--out", "{d}/file"), "--out .* is a file", foreign),
    Case("a file above the run", (*TRAIN, "--out", "{d}/file/run"), "--out .* is a file", foreign),
    Case("a file where the export goes", (*TRAIN, "--export", "{d}/file"), "--export .* is a file", foreign),
    Case(
        "an export among other files",
        (*TRAIN, "--export", "{d}/export"),
        "holds other files, such as letter.txt",
        foreign,
    ),
    Case("no file of options", (*TRAIN, "--config", "{d}/none.json"), "none.json"),
    Case("a list of options", (*TRAIN, "--config", "{d}/list.json"), "holds no options", configs),
    Case("broken options", (*TRAIN, "--config", "{d}/broken.json"), "is not a JSON file", configs),
    Case("unknown options", (*TRAIN, "--config", "{d}/unknown.json"), "Unrecognized options: --step", configs),
    Case("options out of range", (*TRAIN, "--config", "{d}/range.json"), "--steps -3 is out of range", configs),
    Case("options of another kind", (*TRAIN, "--config", "{d}/kind.json"), "learning-rate", configs),
]
