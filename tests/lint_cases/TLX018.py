"""The methods train and eval of modules used as flags."""

from flax import nnx


class Asked(nnx.Module):
    def __init__(self):
        self.deterministic = False

    def __call__(self, x):
        if self.train:  # error: TLX018
            x = 2 * x
        y = x if not self.eval else 0  # error: TLX018
        z = self.helped(x, train=self.train)  # error: TLX018
        self.train()
        self.eval()
        method = self.eval
        return x + y + z + method + self.deterministic

    def helped(self, x, train):
        return x if train else 2 * x


class Assigned(nnx.Module):
    def __init__(self, train: bool):
        self.train = train  # error: TLX018
        self.training = train

    def __call__(self, x):
        if self.train:
            self.train = False
        return x if self.training else 2 * x


class Own(nnx.Module):
    train: bool = True

    def eval(self):
        return self

    def __call__(self, x):
        return x if self.train and self.eval else 2 * x


class Plain:
    def __init__(self):
        self.train = True

    def __call__(self, x):
        return x if self.train else 2 * x


def run(model: Asked, config, x):
    if model.train:  # error: TLX018
        return model(x)
    return x if config.train else model(x)
