from .engine import Engine as Engine, LocalEngine as LocalEngine
from .export import ExportReport as ExportReport, export_panoptic as export_panoptic
from .ray_engine import RayEngine as RayEngine
from .run import (
    FailedRow as FailedRow,
    TokenizeReport as TokenizeReport,
    tokenize_dataset as tokenize_dataset,
)
from .shards import ShardJob as ShardJob, make_shards as make_shards
from .verify import (
    CheckReport as CheckReport,
    VerifyReport as VerifyReport,
    check_tokens as check_tokens,
    verify_tokens as verify_tokens,
)
