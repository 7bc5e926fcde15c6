# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts learns handwritten digits, and everything it counts is exact.

One `tallax.StepCounter` drives the temperature of the gate, the learning rate and the clip threshold. Statistics watch
the gate's logits and a masked head, a vector `tallax.Counter` counts the tokens of each expert, and a `tallax.Buffer`
holds the routing bias that keeps their load even without an auxiliary loss. Evaluation between the epochs counts
nothing, which is checked each time. A `tallax.Logger` writes all of it, every few steps, to a file and to TensorBoard,
and `tallax.Checkpoints` keeps what is needed to go on: a run that was stopped or killed goes on after its last whole
epoch, to the very same end. It ends with a table of all state, plots, and the commands that show the log.

    python examples/digits_moe.py [--epochs N] [--seed N] [--runs FOLDER] [--fresh]
"""

import os
import signal

if __name__ == "__main__":
    # Loading the libraries takes seconds, in which nothing is there to report: Ctrl-C ends the program at once.
    def _stop_early(*_: object) -> None:
        print("\nStopped before training began.", flush=True)
        os._exit(130)

    signal.signal(signal.SIGINT, _stop_early)

import argparse
import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import _plots
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tallax
from tallax.statistics import Histogram, Rate, Statistic

EPOCHS, BATCH, TARGET = 20, 64, 0.95  # TARGET: the test accuracy below which a full run counts as failed
WIDTH, EXPERTS, TOP_K, CLASSES = 32, 8, 2, 10
LOG_EVERY, LOGGED = 10, ("loss", "learning_rate", "clip_threshold", "gradient_norm")  # beside the items
BIAS_RATE = 3e-3  # how fast the routing bias moves; DeepSeek-V3's 1e-3 is for runs of many thousand steps


class MixtureOfExperts(tallax.Module):
    """Sends each token to the `TOP_K` experts that score highest, and balances their load by a bias, without a loss.

    The bias is added to the scores for the choice alone; the experts' outputs are mixed by the scores without it.

    References:
        DeepSeek-AI, "DeepSeek-V3 Technical Report", equations 13 to 16 (arXiv:2412.19437). New here: the temperature.
    """

    def __init__(self, temperature: optax.Schedule, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        self.gate = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        self.expand = nnx.Param(init(rngs.params(), (EXPERTS, WIDTH, WIDTH)))
        self.contract = nnx.Param(init(rngs.params(), (EXPERTS, WIDTH, WIDTH)))
        self.temperature = tallax.ScheduledValue(temperature)
        self.gate_logits = Histogram(-6.0, 6.0, bins=60)
        self.expert_tokens = tallax.Counter(shape=EXPERTS)
        self.routing_bias = tallax.Buffer(jnp.zeros(EXPERTS))
        self.deterministic = False  # set by model.eval() and model.train(), as for nnx.Dropout

    def __call__(self, tokens: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the experts' mixed outputs, and how many of the tokens went to each expert."""
        logits = self.gate(tokens)
        self.gate_logits.update(logits)
        scores = nnx.sigmoid(logits / self.temperature(step))
        _, chosen = jax.lax.top_k(scores + self.routing_bias[...], TOP_K)
        routed = nnx.one_hot(chosen, EXPERTS, dtype=jnp.int32).sum(-2)  # [..., EXPERTS], 1 where the token goes
        if not self.deterministic:
            self.expert_tokens.count(
                routed > 0
            )  # a mask: the sum of int32 values has no bound, so the step traces twice
        weights = scores * routed
        weights /= weights.sum(-1, keepdims=True)
        hidden = nnx.relu(jnp.einsum("...w,ewh->...eh", tokens, self.expand[...]))  # so small that all experts may run
        return jnp.einsum("...eh,ehw->...w", hidden * weights[..., None], self.contract[...]), routed.sum((0, 1))

    def balance(self, load: jax.Array) -> None:
        """Makes overloaded experts a little less, and underloaded ones a little more likely to be chosen next time."""
        self.routing_bias += BIAS_RATE * jnp.sign(load.mean() - load)


class SecondLook(tallax.Module):
    """A head for hard cases: it corrects the logits of those images alone whose two best classes are close."""

    def __init__(self, features: int, *, margin: float = 0.5, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(features, WIDTH, rngs=rngs)
        self.correction = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.margin = margin
        self.active = Rate()
        self.overruled = Rate()

    def __call__(self, features: jax.Array, logits: jax.Array) -> jax.Array:
        best, second = jnp.moveaxis(jax.lax.top_k(nnx.softmax(logits), 2)[0], -1, 0)
        unsure = best - second < self.margin
        corrected = logits + self.correction(nnx.relu(self.hidden(features)))
        self.active.update(unsure)
        self.overruled.update(corrected.argmax(-1) != logits.argmax(-1), where=unsure)
        return jnp.where(unsure[:, None], corrected, logits)


class DigitsMoE(tallax.Module):
    """Turns an 8x8 image into 16 tokens by two convolutions, and classifies what the experts make of them."""

    def __init__(self, temperature: optax.Schedule, *, rngs: nnx.Rngs):
        self.step = tallax.StepCounter(rngs)
        self.stem = nnx.Conv(1, WIDTH // 2, (3, 3), rngs=rngs)
        self.patches = nnx.Conv(WIDTH // 2, WIDTH, (2, 2), strides=2, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.experts = MixtureOfExperts(temperature, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(16 * WIDTH, CLASSES, rngs=rngs)
        self.second_look = SecondLook(16 * WIDTH, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the logits and the experts' load."""
        step = self.step()  # counts in training; in evaluation it only tells where training stands
        x = self.patches(nnx.relu(self.stem(images[..., None])))
        tokens = x.reshape(len(images), 16, WIDTH)
        mixed, load = self.experts(self.norm(tokens), step)
        features = self.dropout((tokens + mixed).reshape(len(images), -1))
        return self.second_look(features, self.head(features)), load


def make_optimizer(model: DigitsMoE, steps: int) -> nnx.Optimizer:
    """Returns AdamW with a clip threshold that warms up, and a learning rate that warms up and decays."""
    warmup = steps // 10
    clip = tallax.clip_by_global_norm(optax.linear_schedule(0.25, 1.0, warmup))
    adamw = tallax.inject_schedules(
        optax.adamw,
        learning_rate=optax.warmup_cosine_decay_schedule(0.0, 4e-3, warmup, steps, end_value=4e-5),
        weight_decay=1e-2,
    )
    return nnx.Optimizer(model, optax.chain(clip, adamw), wrt=nnx.Param)


def train_step(
    model: DigitsMoE, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    """Takes one step, and returns what is worth plotting of it."""

    def loss_fn(model: DigitsMoE) -> tuple[jax.Array, jax.Array]:
        logits, load = model(images)
        targets = optax.smooth_labels(nnx.one_hot(labels, CLASSES), 0.1)
        return optax.softmax_cross_entropy(logits, targets).mean(), load

    (loss, load), grads = tallax.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads, step=model.step)
    model.experts.balance(load)
    clip, adamw = optimizer.opt_state
    return {
        "loss": loss,
        "temperature": model.experts.temperature.value,
        "learning_rate": adamw.hyperparams["learning_rate"][...],
        "clip_threshold": clip.max_norm[...],
        "gradient_norm": optax.tree.norm(grads),
        "expert_load": load / load.sum(),
        "routing_bias": model.experts.routing_bias[...],
    }


@nnx.jit
def accuracy(model: DigitsMoE, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the share of images that are classified rightly."""
    return (model(images)[0].argmax(-1) == labels).mean()


@contextlib.contextmanager
def evaluating(model: DigitsMoE) -> Iterator[None]:
    """Puts the model in evaluation mode for a while, and makes sure that nothing was counted meanwhile."""

    def items() -> dict[str, np.ndarray]:
        state = jax.device_get(nnx.state(model, (tallax.Counter, tallax.Buffer)))
        return {jax.tree_util.keystr(path): value for path, value in jax.tree.leaves_with_path(state)}

    before = items()
    model.eval()
    yield
    model.train()
    np.testing.assert_equal(items(), before, "an item changed in evaluation mode")


@dataclass
class Interrupt:
    """Turns Ctrl-C into a request to stop after the running step, so that no state is left half updated."""

    requested: bool = False

    def __call__(self, *_: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who presses it again does not want to wait


@dataclass
class History:
    """What the steps returned and, per epoch, how often gradients had been clipped and the test accuracy."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    clips: list[tallax.ClipCounts] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Returns it as a checkpoint keeps it; float32 goes through JSON's numbers unharmed."""
        steps = [{name: np.asarray(value).tolist() for name, value in step.items()} for step in self.steps]
        return {
            "steps": steps,
            "clips": [dataclasses.asdict(each) for each in self.clips],
            "accuracies": self.accuracies,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "History":
        """Returns what a checkpoint kept."""
        steps = [{name: np.float32(value) for name, value in step.items()} for step in found["steps"]]
        return cls(steps, [tallax.ClipCounts(**each) for each in found["clips"]], found["accuracies"])


class Data(NamedTuple):
    """Images, float32[n, 8, 8] in [0, 1], and their labels, int32[n]."""

    train_images: np.ndarray
    test_images: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray


def load_data() -> Data:
    """Returns scikit-learn's digits; which of them are for the test never changes."""
    digits = load_digits()
    images, labels = (digits.images / 16).astype(np.float32), digits.target.astype(np.int32)
    return Data(*train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0))


def train(
    model: DigitsMoE,
    optimizer: nnx.Optimizer,
    data: Data,
    epochs: int,
    shuffle: np.random.Generator,
    interrupt: Interrupt,
    console: Console,
    log: tallax.Logger,
    checkpoints: tallax.Checkpoints,
    history: History,
) -> History:
    """Trains from where the history ends, with a checkpoint an epoch, until all are done or Ctrl-C was pressed."""
    batches, done = len(data.train_labels) // BATCH, len(history.accuracies)
    step = tallax.compile_step(train_step, model, optimizer)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(
            "compiling" if done < epochs else "finished", total=epochs * batches, completed=done * batches
        )
        for epoch in range(1, epochs + 1):
            steps, order = [], shuffle.permutation(len(data.train_labels))
            if epoch <= done:
                continue  # but the generator has to be as far as it was
            with step:  # which holds the state until the end of the block
                for batch in order[: batches * BATCH].reshape(batches, BATCH):
                    if interrupt.requested:
                        return history
                    found = step(data.train_images[batch], data.train_labels[batch])
                    log(step, **{name: found[name] for name in LOGGED})
                    steps.append(found)
                    progress.advance(bar)
            with evaluating(model):
                history.accuracies.append(float(accuracy(model, data.test_images, data.test_labels)))
            log.now(test_accuracy=history.accuracies[-1])
            log.flush()  # or a kill could leave a checkpoint of steps whose records were still on their way
            history.clips.append(tallax.clip_counts(optimizer))
            history.steps += jax.device_get(steps)  # once an epoch, so that no step waits for the one before it
            checkpoints.save(epoch * batches, model, optimizer, extra=history.as_json())
            loss = np.mean([step["loss"] for step in history.steps[-batches:]])
            right = history.accuracies[-1]
            progress.update(bar, description=f"epoch {epoch}: loss {loss:.3f}, test accuracy {right:.1%}")
    return history


def describe(item: Any) -> str | None:
    """Returns the exact value of a tallax item, or its summary; None for anything else."""
    match item:
        case tallax.StepCounter():
            return f"{int(item.step):,}"
        case tallax.ScheduledValue():
            return f"{float(item.value):.4f}"
        case Rate():
            seen = item.compute()
            return f"{seen.fired:,} of {seen.total:,} ({seen.rate:.2%})"
        case Histogram():
            seen = item.compute()
            peak = seen.counts.argmax()
            inside = f"{seen.counts.sum():,} in range, most in [{seen.edges[peak]:g}, {seen.edges[peak + 1]:g})"
            outside = f"{seen.underflow + seen.neginf:,} below, {seen.overflow + seen.posinf:,} above, {seen.nan:,} NaN"
            return f"{inside}; {outside}"
        case tallax.Counter():
            return "  ".join(f"{count:,}" for count in np.asarray(item).ravel())
        case tallax.Buffer():
            return "  ".join(f"{value:+.3f}" for value in np.asarray(item[...]).ravel())
    return None


def item_table(model: DigitsMoE, optimizer: nnx.Optimizer) -> Table:
    """Returns a table of every tallax item in the model, and of the clip counts in the optimizer."""
    table = Table("item", "kind", "value", title="Every item, exactly")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    whole: set[tuple[Any, ...]] = set()  # the paths of modules whose one Variable needs no row of its own
    for path, node in sorted(nnx.iter_graph(model), key=lambda entry: tuple(map(str, entry[0]))):
        text = describe(node)
        if text is None or path[:-1] in whole:
            continue
        if isinstance(node, Statistic | tallax.ScheduledValue | tallax.StepCounter):
            whole.add(path)
        table.add_row(".".join(map(str, path)), type(node).__name__, text)
    clips = tallax.clip_counts(optimizer)
    text = f"{clips.clipped:,} of {clips.updates:,} ({clips.rate:.2%}), {clips.nonfinite:,} not finite"
    table.add_row("optimizer", type(clips).__name__, f"{text}; threshold {clips.max_norm:.3f}")
    return table


def how_to_look(folder: Path) -> str:
    """Returns the commands that show what was logged, as they are typed in this environment."""
    programs = Path(sys.executable).parent
    commands = {
        f"tallax tail {folder}": "in the terminal, while it runs too",
        f"tallax plot {folder}": "as a picture",
        f"tallax show {folder}": "all state, with exact counts",
        f"tensorboard --logdir {folder.parent}": "in a browser",
    }
    return "\n".join(
        ["To look at the run:", *(f"  {programs / command}  # {how}" for command, how in commands.items())]
    )


def resumed(
    checkpoints: tallax.Checkpoints, model: DigitsMoE, optimizer: nnx.Optimizer, epochs: int, console: Console
) -> History:
    """Restores the last checkpoint, if there is one, says so, and returns what led there."""
    if checkpoints.latest() is None:
        return History()
    history = History.from_json(checkpoints.restore(model, optimizer).extra)
    if len(history.accuracies) < epochs:
        console.print(f"Resuming after epoch {len(history.accuracies)} of {epochs}; make demo FRESH=1 starts again.")
    return history


def main() -> int:
    """Trains, reports, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the training images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the dropout and the order (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run gets its folder (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start again, and do not go on after the last epoch")
    parser.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help="whether to draw plots")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error("--epochs takes 1 or more")
    interrupt = Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    console = Console()
    console.width = max(console.width, 100)  # a pipe has no width, and 80 columns fold the table

    began, data = time.perf_counter(), load_data()
    steps = options.epochs * (len(data.train_labels) // BATCH)
    model = DigitsMoE(optax.linear_schedule(5.0, 1.0, steps // 2), rngs=nnx.Rngs(options.seed))
    optimizer = make_optimizer(model, steps)
    folder = options.runs / f"digits-moe-seed-{options.seed}-epochs-{options.epochs}"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    with (
        tallax.Checkpoints(folder / "checkpoints") as checkpoints,
        tallax.Logger(tallax.sinks.Jsonl(folder), tallax.sinks.TensorBoard(folder), every=LOG_EVERY) as log,
    ):
        try:
            history = resumed(checkpoints, model, optimizer, options.epochs, console)
        except tallax.TallaxError as error:
            console.print(f"{error}\nmake demo FRESH=1 starts again.", markup=False, soft_wrap=True)
            return 2
        finished = len(history.accuracies) == options.epochs
        shuffle = np.random.default_rng(options.seed)
        train(model, optimizer, data, options.epochs, shuffle, interrupt, console, log, checkpoints, history)
    console.print(item_table(model, optimizer))
    if interrupt.requested:
        console.print(f"Stopped after step {int(model.step)} of {steps}, in epoch {len(history.accuracies) + 1}.")
        console.print("The next run goes on at the beginning of that epoch.")
        return 130
    right = history.accuracies[-1]
    if finished:
        console.print(f"Test accuracy {right:.2%}. This run is finished: make demo FRESH=1 starts again.")
    else:
        console.print(f"Test accuracy {right:.2%} after {options.epochs} epochs, {time.perf_counter() - began:.0f} s.")
        if options.plots:
            _plots.write(folder, history.steps, history.clips, model.experts.gate_logits.compute())
            console.print(f"Plots in {folder}", soft_wrap=True)
    console.print(how_to_look(folder), soft_wrap=True, highlight=False)
    if right < TARGET and options.epochs >= EPOCHS:
        console.print(f"[red]That is below {TARGET:.0%}, which a full run is expected to reach.[/red]")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
