# SPDX-License-Identifier: Apache-2.0
"""Without an extra, its functions raise an error with the install line; everything else works."""

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
WITHOUT = """
import sys

class Without:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == {missing!r} and importing:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

importing = False
sys.meta_path.insert(0, Without())
import flax.nnx, optax, tallax
for name in [name for name in sys.modules if name.partition(".")[0] == {missing!r}]:  # Flax imports rich
    del sys.modules[name]
importing = True
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


@pytest.mark.parametrize("extra", USES)
def test_not_installed(extra, tmp_path):
    """The error, or the command, names the package and the install line."""
    missing, use = USES[extra]
    (tmp_path / "model.pt").write_bytes(b"PK")
    code = WITHOUT.format(missing=missing) + use
    command = [sys.executable, "-W", "ignore", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == (2 if extra == "cli" else 1)
    assert ended.stderr.endswith(f"fix:  pip install 'tallax[{extra}]'\n"), ended.stderr
    assert "which is not installed" in ended.stderr.splitlines()[-2]
    assert extra == "cli" or "tallax.MissingExtraError" in ended.stderr


def test_all_else_works_without(tmp_path):
    """Every other public name works without the packages of any extra."""
    missing = {name for name, _ in USES.values()} - {"rich"}
    code = f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
    code += "import tallax\nfor name in dir(tallax): getattr(tallax, name)\ntallax.sinks.Jsonl('run').close()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
