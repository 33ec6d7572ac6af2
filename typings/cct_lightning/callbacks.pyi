from callbacks import EMA as EMA
from callbacks import ProgressBar as ProgressBar
from callbacks import Throughput as Throughput
