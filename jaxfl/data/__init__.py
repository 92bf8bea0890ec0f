"""Data: who owns which example, real and generated data sets, shifts between clients."""

from jaxfl.data.augment import crop_and_flip as crop_and_flip
from jaxfl.data.generators import mixture as mixture
from jaxfl.data.generators import planted_regression as planted_regression
from jaxfl.data.generators import synthetic as synthetic
from jaxfl.data.generators import teacher_student as teacher_student
from jaxfl.data.generators import two_moons as two_moons
from jaxfl.data.partition import Partition as Partition
from jaxfl.data.partition import dirichlet as dirichlet
from jaxfl.data.partition import iid as iid
from jaxfl.data.partition import labels_per_client as labels_per_client
from jaxfl.data.partition import natural as natural
from jaxfl.data.partition import noise as noise
from jaxfl.data.partition import permute_labels as permute_labels
from jaxfl.data.partition import quantity as quantity
from jaxfl.data.partition import rotate as rotate
from jaxfl.data.partition import shards as shards
from jaxfl.data.partition import split as split
from jaxfl.data.sets import DATASETS as DATASETS
from jaxfl.data.sets import Dataset as Dataset
from jaxfl.data.sets import from_arrays as from_arrays
from jaxfl.data.sets import from_table as from_table
from jaxfl.data.sets import load as load
