from ckptdiff.make import make
from ckptdiff.apply import apply
