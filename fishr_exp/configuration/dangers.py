"""What a file may not write into the `hydra` section, which Hydra builds before a run begins."""

from __future__ import annotations

import re

from fishr_exp.runs.identity import TARGET

_HYDRA_TARGETS = re.compile(
    r"fishr_exp\.configuration\.baseline\.AddBaseline"
    r"|fishr_exp\.configuration\.callbacks\."
    r"(CheckRunFolder|ShareSweepName|PassSignalsOn|WaitForAllJobs)"
    r"|hydra\.experimental\.callbacks\.(LogJobReturnCallback|PickleJobInfoCallback)"
    r"|optuna\.samplers\.\w+Sampler"
)
# What Hydra builds from, and what a job's script and environment are made of.
_BUILT = re.compile(r"hydra(\.(callbacks|launcher|sweeper|job|job_logging|hydra_logging)(\..*)?)?")
_PLUGINS = ("hydra.launcher._target_", "hydra.sweeper._target_")  # Hydra builds only its plugins
_LOGGING = ("hydra.job_logging.", "hydra.hydra_logging.")
_LOGGING_CLASSES = (
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "logging.Formatter",
    "colorlog.ColoredFormatter",
    "fishr_exp.configuration.console.ConsoleFormatter",
    "fishr_exp.configuration.console.ConsoleHandler",
)
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_LOG_FILE = re.compile(r"\$\{hydra\.runtime\.output_dir\}/(\$\{hydra\.job\.name\}|[\w-]+)\.log")
_VARIABLES = re.compile(r"\w+_NUM_THREADS|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER")
# Of launchers for clusters: what they write into a job's script.
_SCRIPT = tuple(
    f"hydra.launcher.{name}" for name in ("setup", "python", "srun_args", "additional_parameters")
)


def danger(key: str, value: object) -> str:
    """Return why a file may not set a key of Hydra's to a value; empty if it may."""
    name = key.rpartition(".")[2]
    logs = key.startswith(_LOGGING)
    text = str(value)
    whole = text.startswith("${") and text.endswith("}") and text != "${hydra.job.name}"
    if _BUILT.fullmatch(key) and (whole or (logs and "${" in text and name != "filename")):
        return "what it refers to may be anything"
    if key.startswith("hydra.launcher.") and not text.isprintable():
        return "it is a line of a job's script"
    if key == "hydra.sweeper.custom_search_space" and value is not None:
        return "it calls any function"
    if logs and ".." in key:  # the key ".", which sets attributes
        return "it changes any attribute"
    if name == TARGET and key not in _PLUGINS and not _HYDRA_TARGETS.fullmatch(str(value)):
        return "it calls any function"
    if logs and name in ("class", "()") and value not in _LOGGING_CLASSES:
        return "it calls any function"
    if logs and str(value).startswith("ext://") and value not in _STREAMS:
        return "it imports any module"
    if logs and name == "filename" and not _LOG_FILE.fullmatch(str(value)):
        return "a log file is in the run folder and ends in .log"
    if key == "hydra.job.name" and not re.fullmatch(r"[\w-]+", text):
        return "it names the log file"
    if key == "hydra.output_subdir" and value not in (None, ".hydra"):
        return "files are written there"
    if key.startswith("hydra.job.env_set.") and not _VARIABLES.fullmatch(name):
        return "programs read the environment"
    if key.startswith(_SCRIPT) and value not in (None, [], {}):
        return "it is run in the job"
    return ""
