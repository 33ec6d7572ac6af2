from callbacks import Throughput as Throughput
