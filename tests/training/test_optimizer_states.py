import pytest
import timm.optim
import torch
from torch import nn

from cct_lightning import InputError, OptimConfig
from cct_lightning.training.optimizers import create_optimizer

# Kron compiles its step, which takes a quarter of a minute.
NAMES = ["muon", *sorted(name for name in map(str, timm.optim.list_optimizers()) if name != "muon" and not name.startswith("kron"))]


class Net(nn.Module):
    """Vectors, matrices and a convolution, two of them inside a layer."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 6)])
        self.convs = nn.ModuleList([nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3)])
        self.head = nn.Linear(6, 2)


def made(name, steps=0):
    torch.manual_seed(0)
    net = Net()
    optimizer = create_optimizer(net, OptimConfig(name, lr=1e-3))
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


@pytest.mark.filterwarnings("ignore")  # of timm's old names
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_takes_its_own_state(name):
    try:
        trained = made(name, steps=2)
    except Exception as error:  # needs a package, or a closure of second derivatives
        pytest.skip(str(error).splitlines()[0] if str(error) else type(error).__name__)
    fresh = made(name)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.state_dict()["state"].keys() == trained.state_dict()["state"].keys()


def exchanged(state):
    state["state"][0], state["state"][2] = state["state"][2], state["state"][0]


@pytest.mark.parametrize(("name", "damage", "message"), [
    ("adamw", exchanged, r"AdamW: state.0.exp_avg is of shape \(3,\), and its parameter of \(8,\)"),
    ("muon", lambda state: state["state"][8].update(x=1), "Muon: state.8 holds momentum_buffer, x, and should hold momentum_buffer"),
    ("sgd", lambda state: state["param_groups"][0].update(momentum=0.5), "SGD.*: momentum is 0.5, and the run has 0.9"),
    ("lion", exchanged, r"Lion: state.0.exp_avg is of shape \(3,\), and its parameter of \(8,\)"),
    ("lamb", exchanged, r"Lamb: state.0.exp_avg is of shape \(3,\), and its parameter of \(8,\)"),
    ("adamw", lambda state: state["param_groups"].pop(), r"AdamW: its groups have \d+ parameters, those of the run \d+, \d+"),
    ("adamw", lambda state: state["state"][0].update(step="one"), "AdamW: state.0.step is none of the steps"),
])  # fmt: skip
def test_r10c_a_state_of_another_optimizer_is_refused_by_name(name, damage, message):
    state = made(name, steps=2).state_dict()
    damage(state)
    with pytest.raises(InputError, match=f"the checkpoint's optimizer state is none of this run's {message}"):
        made(name).load_state_dict(state)
