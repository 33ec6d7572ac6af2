from callbacks import EMA as EMA
from callbacks import BatchPreview as BatchPreview
from callbacks import KNNAccuracy as KNNAccuracy
from callbacks import PoolingMaps as PoolingMaps
from callbacks import ProgressBar as ProgressBar
from callbacks import StartRecord as StartRecord
from callbacks import TestReport as TestReport
from callbacks import Throughput as Throughput
