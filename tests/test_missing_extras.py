# SPDX-License-Identifier: Apache-2.0
"""Without an extra, its functions raise an error with the install line; everything else works."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Of each extra: what is not installed, and a use of it.
USES = {
    "cli": ("typer", "import tallax.cli; tallax.cli.main()"),
    "console": ("rich", "tallax.sinks.Console()"),
    "mlflow": ("mlflow", "tallax.sinks.MLflow(experiment='e')"),
    "parquet": ("pyarrow", "tallax.sinks.Parquet('run')"),
    "plot": ("matplotlib", "tallax.statistics.Histogram(0.0, 1.0, 4).plot()"),
    "tensorboard": ("tensorboardX", "tallax.sinks.TensorBoard('run')"),
    "torch": ("torch", "tallax.interop.from_torch('model.pt', flax.nnx.Linear(2, 2, rngs=flax.nnx.Rngs(0)))"),
    "wandb": ("wandb", "tallax.sinks.WandB()"),
}
# One process for all, as most of its time would be the import of Flax.
WITHOUT = """
import contextlib, io, json, sys, traceback

class Without:
    missing = None
    def find_spec(self, name, *_):
        if name.partition(".")[0] == self.missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, without := Without())
import flax.nnx, optax, tallax
ended = {}
for extra, (missing, use) in json.loads(sys.argv[1]).items():
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:  # Flax imports rich
        del sys.modules[name]
    without.missing, code, text = missing, 0, io.StringIO()
    with contextlib.redirect_stderr(text):
        try:
            exec(use)
        except SystemExit as exit:
            code = exit.code
        except Exception:
            code = 1
            traceback.print_exc()
    ended[extra] = code, text.getvalue()
print(json.dumps(ended))
"""


def test_every_extra_has_a_use_here():
    """Every extra has a test here, except the demo's, which installs the imports of examples/digits_moe.py."""
    assert USES.keys() == EXTRAS.keys() - {"demo"}


def test_every_extra_is_documented():
    """The quick start lists all extras with their packages."""
    page = (ROOT / "docs" / "quickstart.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, flags=re.MULTILINE))
    packages = {extra: [re.split("[<>=]", need)[0] for need in needs] for extra, needs in EXTRAS.items()}
    assert {extra: sorted(told.split(", ")) for extra, told in rows.items()} == {
        extra: sorted(names) for extra, names in packages.items()
    }


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Returns the exit code and the text on stderr of each use."""
    folder = tmp_path_factory.mktemp("extras")
    (folder / "model.pt").write_bytes(b"PK")
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, json.dumps(USES)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder).stdout)


@pytest.mark.parametrize("extra", USES)
def test_not_installed(extra, ended):
    """The error, or the command, names the package and the install line."""
    code, text = ended[extra]
    assert code == (2 if extra == "cli" else 1)
    assert text.endswith(f"fix:  pip install 'tallax[{extra}]'\n"), text
    assert "which is not installed" in text.splitlines()[-2]
    assert extra == "cli" or "tallax.MissingExtraError" in text


def test_all_else_works_without(tmp_path):
    """Every other public name works without the packages of any extra."""
    missing = {name for name, _ in USES.values()} - {"rich"}
    code = f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
    code += "import tallax\nfor name in dir(tallax): getattr(tallax, name)\ntallax.sinks.Jsonl('run').close()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
