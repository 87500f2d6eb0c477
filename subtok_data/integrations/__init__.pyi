from .lightning import SubobjectDataModule as SubobjectDataModule
from .llava import (
    generation_inputs as generation_inputs,
    load_subobject_model as load_subobject_model,
    use_subobject_tokens as use_subobject_tokens,
)
from .naflex import to_naflex as to_naflex
from .processor import SubobjectProcessor as SubobjectProcessor
from .trainer import (
    EpochCallback as EpochCallback,
    SubobjectTrainerMixin as SubobjectTrainerMixin,
)
