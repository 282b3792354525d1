"Every public name of fastmix. Import it after fastai's own `all`, which exports a `MixUp` and a `CutMix` too"

from fastmix.mix import *
from fastmix.draw import *
from fastmix.batch import *
from fastmix.loss import *
from fastmix.layers import *
from fastmix.mixer import *
# The methods: `make prep` writes a line for each notebook under nbs/methods that exports a module
from fastmix.methods.mixup import *
from fastmix.methods.cutmix import *
from fastmix.methods.resizemix import *
from fastmix.methods.hmix import *
from fastmix.methods.gmix import *
from fastmix.methods.fmix import *
from fastmix.methods.patchmix import *
from fastmix.methods.specmix import *
from fastmix.methods.saliencymix import *
from fastmix.methods.guidedmixup import *
from fastmix.methods.ricap import *
from fastmix.methods.cmixup import *
from fastmix.methods.remix import *
from fastmix.methods.copypaste import *
from fastmix.methods.tabularswap import *
from fastmix.methods.transmix import *
from fastmix.methods.manifold_mixup import *
from fastmix.methods.mix_choice import *
from fastmix.methods.augmix import *
from fastmix.show import *
from fastmix.data import *
from fastmix.compare.arm import *
from fastmix.compare.results import *
from fastmix.compare.table import *
from fastmix.compare.run import *
from fastmix.compare.plot import *
from fastmix.compare.report import *
from fastmix.metric import *

# Every method of mixing that is imported above, by its name in lower case
all_mixers = {name.lower(): cls for name, cls in list(vars().items()) if isinstance(cls, type) and issubclass(cls, Mixer) and cls is not Mixer}  # noqa: F405
