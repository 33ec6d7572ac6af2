from callbacks import EMA as EMA
from callbacks import Throughput as Throughput
