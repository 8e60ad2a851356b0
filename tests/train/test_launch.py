"""The scripts and manifests in `launch/`: their shell, Kubernetes' schemas, and the options that they give to train."""

import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from train.cli import parse

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def options(script, **variables):
    """The arguments of train in a script, as its shell makes them."""
    text = script.read_text()
    code = text[text.index("TRAIN=(") : text.index("\n)\n") + 3]
    settings = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    shown = subprocess.run(
        ["bash", "-c", f"{settings}{code}\nprintf '%s\\n' \"${{TRAIN[@]}}\""],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.splitlines()


@pytest.fixture
def no_recipe(monkeypatch):
    """A recipe's defaults depend on the model, which is in no bucket here."""
    monkeypatch.setattr("train.starting.model_config", lambda config: None)
    monkeypatch.setattr("train.recipes.with_defaults", lambda config, model: config)


def test_the_shell():
    assert SCRIPTS
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert not done.returncode, done.stdout


def test_the_options_are_known(no_recipe):
    config = parse(options(LAUNCH / "tpu_vm.sh", SLICES="2"))
    assert (config.mesh.data, config.process.coordinator) == (2, "auto")
    assert config.out.startswith("gs://")
    config = parse(options(LAUNCH / "slurm.sh", OUT="/shared/run", SLURM_NNODES="4"))
    assert (config.mesh.data, config.process.coordinator) == (4, "auto")


def test_the_manifest(no_recipe):
    manifest = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["spec"].keys() == {"failurePolicy", "replicatedJobs"}
    assert manifest["spec"]["failurePolicy"].keys() == {"maxRestarts"}
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    # What is in a JobSet's template is a Job.
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, **replicated["template"]}
    kubernetes_validate.validate(job, "1.33", strict=True)
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    rows, columns = map(int, spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["spec"]["completions"] * container["resources"]["limits"]["google.com/tpu"] == rows * columns
    config = parse(container["args"])
    assert config.mesh.data == replicated["replicas"]
    assert config.export is not None


def test_a_manifest_that_is_wrong_is_noticed():
    manifest = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    job |= manifest["spec"]["replicatedJobs"][0]["template"]
    job["spec"]["completion"] = job["spec"].pop("completions")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.33", strict=True)
