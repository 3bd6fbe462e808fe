"""The command of a run: as a process on this machine, or for other machines by a template.

Commands are lists of words throughout and go through no shell here. Where a tool takes the command of another machine
as one text, that text is quoted for the shell over there; what is printed is quoted for the reader's own.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from pixel_align.settings import ConfigError
from pixel_align.sweep.points import Point

# A word {command} is the command as one text. Other names are given with --with, but for those in _KNOWN.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    # This machine, or any whose processes find each other by themselves.
    "plain": ("{command}",),
    # Every worker of a TPU VM slice; jax finds the others from the metadata server.
    "tpu_vm": (
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "{tpu}", "--project={project}", "--zone={zone}"),
        *("--worker=all", "--command=env -C {folder} {command}"),
    ),
    # A workload on GKE: XPK makes a JobSet of it.
    "xpk": (
        *("xpk", "workload", "create", "--workload={id}", "--cluster={cluster}", "--project={project}"),
        *("--zone={zone}", "--tpu-type={tpu_type}", "--num-slices={slices}", "--docker-image={image}"),
        "--command={command}",
    ),
    # A job of Slurm: one process a node; jax finds the others from Slurm's variables.
    "slurm": (
        *("sbatch", "--job-name={id}", "--nodes={nodes}", "--ntasks-per-node=1", "--chdir={folder}"),
        *("--output={id}-%j.txt", "--wrap=srun {command}"),
    ),
}
_FIELD = re.compile(r"\{(\w+)\}")
_KNOWN = ("command", "id", "name")
_DEFAULTS = {"python": "python", "slices": "1"}
_WORDS = frozenset({"plain"})  # templates whose {command} is not one text


def command(
    point: Point, files: Sequence[str], bindings: Sequence[str], changes: Sequence[str], workdir: str, python: str = ""
) -> list[str]:
    """`python -m pixel_align train ...` of a point, as words.

    Args:
      files: of the experiment: one .py file, or gin files. bindings: of gin. changes: of `--set`, before the point's.
      workdir: of this run. python: the interpreter, this one by default.
    """
    first, *others = files
    words = [python or sys.executable, "-m", "pixel_align", "train", first, f"--workdir={workdir}"]
    words += [f"--gin_file={other}" for other in others]
    words += [f"--gin.{binding}" for binding in bindings]
    return words + [f"--set={text}" for text in (*changes, *point.texts)]


def fill(template: str, point: Point, words: Sequence[str], sweep: str, given: Mapping[str, str]) -> list[str]:
    """A template with a point's command and what was given, as words.

    {id} is the sweep's name and the point's digest, in letters that clusters allow; {name} the name of its folder. Both
    may stand in what is given as well: tpu=sweep-{id}.

    Raises:
      ConfigError: no such template; something missing, or given for nothing.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"--print is {template!r}, expected one of {', '.join(TEMPLATES)}. Choose one of them.")
    needed = needs(template)
    if unknown := [name for name in given if name not in needed and name != "python"]:
        raise ConfigError(f"--with {unknown[0]} is given, expected one of {', '.join(needed)}. Leave it out.")
    if missing := [name for name in needed if name not in given and name not in _DEFAULTS]:
        raise ConfigError(
            f"{', '.join(missing)} of --print {template} {'is' if len(missing) == 1 else 'are'} not given, expected "
            f"a value. Add {' '.join(f'--with {name}=...' for name in missing)}."
        )
    label = "".join(c if c.isalnum() else "-" for c in sweep.rpartition(":")[2].lower()).strip("-")
    own = {"id": f"{label[:32].rstrip('-')}-{point.digest}", "name": point.name}
    if template in _WORDS:
        return list(words)
    values = {name: _replaced(value, own) for name, value in {**_DEFAULTS, **given}.items()}
    # Inside a text for another shell every value is quoted for it.
    quoted = {name: shlex.quote(value) for name, value in values.items()} | {"command": shlex.join(words)}
    return [_replaced(word, quoted if "{command}" in word else {**values, **own}) for word in TEMPLATES[template]]


def needs(template: str) -> list[str]:
    """The names that have to be given to a template, those with defaults included."""
    fields = (name for word in TEMPLATES[template] for name in _FIELD.findall(word))
    return [name for name in dict.fromkeys(fields) if name not in _KNOWN]


def _replaced(text: str, values: Mapping[str, str]) -> str:
    """{name} -> its value, once: braces inside of values, and others, stay what they are."""
    return _FIELD.sub(lambda found: values.get(found[1], found[0]), text)
